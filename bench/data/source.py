"""Where a dataset's images come from: the small record that travels to workers and identifies the data."""

from typing import Literal

from pydantic import Field

from bench.records import Record

Metric = Literal["top1", "top5", "mean_per_class", "macro_f1", "weighted_f1"]
Split = Literal["unlabelled", "train", "val", "test"]


class Source(Record):
    """A dataset after its reference was resolved."""

    name: str = Field(description="what reports call it: the card's or the folder's name, with its options")
    reader: str = Field(description="how its images are read: builtin, folder, or a release's layout")
    location: str = Field(description="a built-in family's name, an absolute folder, or a remote address")
    level: str = Field("", description="which of a release's sets of classes")
    boxes: bool = Field(False, description="images are cropped to their bounding boxes")
    fingerprint: str = Field(description="sha256 over every image's bytes, class and split, and the reader's version")
    metric: Metric = Field("top1", description="the one headline metric that the field uses for it")
