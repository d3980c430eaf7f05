"""What was published elsewhere, to be read beside a sweep's own results. No statistic compares the two."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """The figures of one publication, by the names of a sweep's candidates."""

    source: str
    dataset: str
    metric: str
    label: str
    values: Mapping[str, float]  # fractions


STUDIES = {
    # arXiv 2107.13973, the accuracies of its table. Its supervised row is trained by PMG, so it stands beside `pmg`.
    "study": Published(
        source="arXiv 2107.13973",
        dataset="cassava",
        metric="top1",
        label="published: one unseeded run selected on its own test split",
        values={"jigsaw": 0.68, "simclr": 0.73, "simclr_gamma": 0.738, "srgan": 0.83, "pmg": 0.88},
    )
}


def published(sweep: str) -> Published | None:
    """What was published on a sweep's rows, None where nothing was."""
    return STUDIES.get(sweep)


def published_value(sweep: str, configuration: str) -> float | None:
    """The published figure of one of a sweep's configurations, a fraction; None where there is none."""
    study = published(sweep)
    return study.values.get(configuration) if study else None
