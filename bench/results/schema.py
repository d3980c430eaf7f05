"""The one schema of every ledger file, and the typed records that become its rows.

Tidy: one row per trial x dataset x protocol x variant x split x metric. A pruned trial has one row (metric
"objective", split "val", no dataset); a failed trial has one row without a measurement. Because every file has
exactly this schema, pandas, pyarrow and DuckDB read the ledger's folder as it is, whatever sweeps it holds.

Hyperparameters that a sweep searched lie in two maps, so that the schema stays the same for every sweep:
`swept_numbers` (integers and reals) and `swept_texts` (texts; booleans as "true" and "false"; lists and tables as
canonical JSON). A hyperparameter whose value is None is in neither. `bench.results.ledger` spreads both into typed
columns `param.NAME`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import pyarrow as pa

from bench.records import canonical_json

SCHEMA_VERSION = 2

Stage = Literal["search", "confirm"]
Status = Literal["finished", "pruned", "failed"]
Role = Literal["best", "baseline", "control"]
Swept = float | int | bool | str | Sequence[Any] | Mapping[str, Any] | None


def _field(name: str, kind: Any, doc: str, unit: str = "", *, required: bool = False) -> Any:
    metadata = {"doc": doc} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=not required, metadata=metadata)


_TIME = pa.timestamp("us", tz="UTC")

SCHEMA: Any = pa.schema(
    [
        _field("schema_version", pa.int16(), "version of this schema", required=True),
        _field("trial_id", pa.string(), "sha256 of everything that decides the trial's result", required=True),
        _field("pretrain_id", pa.string(), "sha256 of everything that decides the trial's encoder"),
        _field("sweep", pa.string(), "name of the sweep that asked for the trial", required=True),
        _field("sweep_id", pa.string(), "hash of that sweep's definition", required=True),
        _field("stage", pa.string(), "search or confirm", required=True),
        _field("configuration", pa.string(), "name in leaderboards; in search that of the candidate", required=True),
        _field("role", pa.string(), "best, baseline or control; null in search"),
        _field("configuration_id", pa.string(), "hash of the trial without its seed: groups seeds", required=True),
        _field("method", pa.string(), "the pretext task", required=True),
        _field("encoder", pa.string(), "the encoder's name", required=True),
        _field("seed", pa.int64(), "the trial's seed", required=True),
        _field("draw", pa.int32(), "number of the search draw, from 0; null in confirm"),
        _field("status", pa.string(), "finished, pruned or failed", required=True),
        _field("error", pa.string(), "one line; null unless failed"),
        _field("error_file", pa.string(), "file with the traceback, relative to the results folder"),
        _field("reused", pa.bool_(), "rows copied from another sweep or stage: nothing was run", required=True),
        _field("recorded_at", _TIME, "when the rows were written under this sweep and stage", required=True),
        _field("dataset", pa.string(), "the dataset evaluated on"),
        _field("dataset_fingerprint", pa.string(), "sha256 over its images, classes and splits"),
        _field("protocol", pa.string(), "linear, knn, finetune"),
        _field("protocol_version", pa.int16(), "raised whenever the protocol would give other results"),
        _field("variant", pa.string(), 'variant of the protocol, such as "k=20"; empty when there is one only'),
        _field("split", pa.string(), "val or test"),
        _field("metric", pa.string(), "name of the metric"),
        _field("headline", pa.bool_(), "this metric is the dataset's headline metric", required=True),
        _field("value", pa.float64(), "the metric's value; null on confusion rows", "fraction 0..1"),
        _field("samples", pa.int64(), "samples scored", "samples"),
        _field("low", pa.float64(), "lower end of the 95 % bootstrap interval over samples", "fraction 0..1"),
        _field("high", pa.float64(), "upper end of that interval", "fraction 0..1"),
        _field("chosen", pa.string(), "JSON of what validation chose"),
        _field("confusion", pa.list_(pa.int64()), "true x predicted, row-major; on confusion rows", "samples"),
        _field("classes", pa.list_(pa.string()), "class names in that order; on confusion rows"),
        _field("precision", pa.list_(pa.float64()), "of each class; 0 where it is never predicted", "fraction 0..1"),
        _field("recall", pa.list_(pa.float64()), "of each class; null where the split lacks it", "fraction 0..1"),
        _field(
            "f1", pa.list_(pa.float64()), "of each class; null where it neither occurs nor is predicted", "fraction"
        ),
        _field("objective", pa.float64(), "the trial's validation objective, higher is better", "fraction 0..1"),
        _field("config", pa.string(), "canonical JSON of the whole trial", required=True),
        _field("swept_numbers", pa.map_(pa.string(), pa.float64()), "swept hyperparameters that are numbers"),
        _field("swept_texts", pa.map_(pa.string(), pa.string()), "swept hyperparameters that are not"),
        _field("pretrain_dataset", pa.string(), "the dataset pretrained on"),
        _field("pretext", pa.string(), "JSON of the pretext task's own figures at the end of training"),
        _field("epochs", pa.int32(), "epochs trained", "epochs"),
        _field("epochs_planned", pa.int32(), "epochs asked for", "epochs"),
        _field("workers", pa.int16(), "training workers", "processes"),
        _field("wall_seconds", pa.float64(), "from the trial's start to its end", "s"),
        _field("device_seconds", pa.float64(), "wall seconds times devices held", "s"),
        _field("images_per_second", pa.float64(), "pretraining throughput over all workers", "images/s"),
        _field("peak_memory_bytes", pa.int64(), "peak memory of one worker's device", "bytes"),
        _field("encoder_parameters", pa.int64(), "parameters of the encoder", "parameters"),
        _field("git_commit", pa.string(), "commit of the code that ran"),
        _field("git_dirty", pa.bool_(), "the working tree differed from the commit"),
        _field("versions", pa.string(), "JSON of package versions"),
        _field("device", pa.string(), "the device's name"),
        _field("host", pa.string(), "the host's name"),
        _field("started_at", _TIME, "start of the trial"),
        _field("finished_at", _TIME, "end of the trial"),
    ],
    metadata={"schema": "bench ledger", "version": str(SCHEMA_VERSION)},
)


@dataclass(frozen=True, kw_only=True)
class Membership:
    """The place of a trial in a sweep; a finished trial can have several (see `Ledger.adopt`).

    `configuration` is the name in leaderboards, in search that of the candidate; `role` is None in search, `draw` in
    confirm. `swept` maps each searched field's
    dotted path to its value.
    """

    sweep: str
    sweep_id: str
    stage: Stage
    configuration: str
    role: Role | None = None
    draw: int | None = None
    swept: Mapping[str, Swept] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _one_of("stage", self.stage, get_args(Stage))
        if self.role is None and self.stage == "confirm":
            object.__setattr__(self, "role", "best" if self.configuration == "best" else "baseline")
        _one_of("role", self.role, (None, *get_args(Role)))

    def columns(self) -> dict[str, Any]:
        """The ledger's columns that this place decides, but for `reused` and `recorded_at`."""
        numbers, texts = split_swept(self.swept)
        return {
            "sweep": self.sweep,
            "sweep_id": self.sweep_id,
            "stage": self.stage,
            "configuration": self.configuration,
            "role": self.role,
            "draw": self.draw,
            "swept_numbers": sorted(numbers.items()),
            "swept_texts": sorted(texts.items()),
        }


@dataclass(frozen=True, kw_only=True)
class TrialFacts:
    """Everything that is the same on all rows of a trial; the schema's fields give meanings and units.

    `objective` may be None (no validation value was reached); `error` is needed when failed. Times are aware.
    """

    trial_id: str
    membership: Membership
    configuration_id: str
    method: str
    encoder: str
    seed: int
    status: Status
    config: Mapping[str, Any]
    pretrain_id: str | None = None
    objective: float | None = None
    error: str | None = None
    error_file: str | None = None
    pretrain_dataset: str | None = None
    pretext: Mapping[str, float] = field(default_factory=dict)
    epochs: int | None = None
    epochs_planned: int | None = None
    workers: int = 1
    wall_seconds: float | None = None
    device_seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    encoder_parameters: int | None = None
    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    host: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    def __post_init__(self) -> None:
        _one_of("status", self.status, get_args(Status))
        if not self.trial_id.isalnum():
            raise ValueError(f"trial_id must be letters and digits only (given: {self.trial_id!r})")
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("a failed trial needs an error, and only a failed one has it")

    def columns(self) -> dict[str, Any]:
        """The ledger's columns that are constant over the trial's rows."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "membership"}
        return own | {
            **self.membership.columns(),
            "schema_version": SCHEMA_VERSION,
            "reused": False,
            "recorded_at": datetime.now(UTC),
            "error": None if self.error is None else " ".join(self.error.split()),
            "config": canonical_json(self.config),
            "versions": canonical_json(self.versions),
            "pretext": canonical_json(self.pretext),
        }


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured number, or one confusion matrix (`metric="confusion"`, `value=None`, classes^2 counts)."""

    dataset: str
    protocol: str
    split: Literal["val", "test"]
    metric: str
    value: float | None
    headline: bool = False
    variant: str = ""
    protocol_version: int = 1
    dataset_fingerprint: str | None = None
    samples: int | None = None
    low: float | None = None
    high: float | None = None
    chosen: Mapping[str, Any] = field(default_factory=dict)
    confusion: Sequence[int] | None = None
    classes: Sequence[str] | None = None
    precision: Sequence[float | None] | None = None
    recall: Sequence[float | None] | None = None
    f1: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        _one_of("split", self.split, ("val", "test"))
        if (self.confusion is None) != (self.metric != "confusion"):
            raise ValueError("a confusion matrix lies on rows of the metric 'confusion', and only there")
        if self.confusion is not None and len(self.confusion) != len(self.classes or ()) ** 2:
            raise ValueError(f"confusion has {len(self.confusion)} counts for {len(self.classes or ())} classes")

    def columns(self) -> dict[str, Any]:
        """The ledger's columns that this measurement decides."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        confusion = None if self.confusion is None else [int(count) for count in self.confusion]
        return own | {"chosen": canonical_json(self.chosen), "confusion": confusion}


def rows_table(facts: TrialFacts, measurements: Sequence[Measurement] = ()) -> Any:
    """The trial's rows as a `pyarrow.Table` of exactly `SCHEMA`.

    A finished trial has one row per measurement and needs one at least; others have one row and no measurements.
    """
    if bool(measurements) != (facts.status == "finished"):
        raise ValueError(f"a {facts.status} trial cannot have {len(measurements)} measurements")
    constant = facts.columns()
    rows = [constant | measurement.columns() for measurement in measurements]
    return pa.Table.from_pylist(rows or [constant | _bare(facts)], schema=SCHEMA)


def split_swept(swept: Mapping[str, Swept]) -> tuple[dict[str, float], dict[str, str]]:
    """Sort swept values into numbers and texts; None is in neither."""
    numbers: dict[str, float] = {}
    texts: dict[str, str] = {}
    for name, value in swept.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = float(value)
        elif value is not None:
            texts[name] = value if isinstance(value, str) else canonical_json(value)
    return numbers, texts


def _bare(facts: TrialFacts) -> dict[str, Any]:
    """The measurement columns of a trial without measurements."""
    if facts.status == "pruned":
        return {"split": "val", "metric": "objective", "headline": False, "value": facts.objective}
    return {"headline": False}


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))} (given: {value!r})")
