"""A dataset's card: what it is, where its images are, and what may be done with them."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from bench.data.source import Metric, Split
from bench.records import Record, parse, read_toml


class DatasetCard(Record):
    """One dataset. `classes` and `counts` are required of a built-in family and checked for a folder."""

    title: str = Field(min_length=1, description="one line for people")
    reader: Literal["builtin", "folder"] = Field(description="how its images are read")
    location: str = Field(
        min_length=1, description="a built-in family's name, or a folder: absolute or relative to the card"
    )
    classes: tuple[str, ...] | None = Field(None, description="names of the classes")
    counts: dict[Split, int] | None = Field(None, description="images per split")
    metric: Metric = Field("top1", description="the one headline metric that the field uses for it")
    licence: str = Field(min_length=1, description="licence or terms of use")
    citation: str = Field(min_length=1, description="whom to cite")
    version: str = Field(min_length=1, description="changes when the images or splits change")
    summary: str = Field(min_length=1, description="what makes it fine-grained, in some sentences")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.reader == "builtin" and (self.classes is None or self.counts is None):
            raise ValueError("a builtin card needs classes and counts")
        return self


def read_card(path: Path) -> DatasetCard:
    """Read and validate a dataset's card; BadInput names the file and the key."""
    return parse(DatasetCard, read_toml(path), str(path))
