"""A dataset's card: what it is, where its images are, and what may be done with them."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from bench.data.releases import layout_names
from bench.data.source import Metric, Split
from bench.errors import suggestion
from bench.records import Record, parse, read_toml

READERS = ("builtin", "folder")


class Archive(Record):
    """One file of a release, as its host gives it."""

    file: str = Field(pattern=r"^[\w.-]+$", description="its name; .tar, .tgz, .tar.gz and .zip are unpacked")
    size: int | None = Field(None, ge=1, description="bytes, where the host or a list of checksums says so")
    checksum: str = Field(pattern=r"^(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})$", description="sha256:HEX or md5:HEX")
    addresses: tuple[str, ...] = Field((), description="where it is, the official host first, then mirrors")
    into: str = Field("", pattern=r"^[\w./-]*$", description="folder below the dataset's own that receives it")


class DatasetCard(Record):
    """One dataset. `classes` and `counts` are required of a built-in family, and compared with what is found."""

    title: str = Field(min_length=1, description="one line for people")
    reader: str = Field(description="how its images are read: builtin, folder, or the name of a release's layout")
    location: str | None = Field(
        None,
        min_length=1,
        description="a built-in family's name, or a folder: absolute, relative to the card, or a remote address; "
        "a release without one is looked for under the data root",
    )
    folders: tuple[str, ...] = Field((), description="names that people's unpacked copies have under the data root")
    level: str = Field("", description="which of the release's sets of classes; by default its usual one")
    boxes: bool = Field(False, description="crop each image to its bounding box")
    classes: tuple[str, ...] | int | None = Field(None, description="names of the classes, or how many there are")
    counts: dict[Split, int] | None = Field(
        None, description="images per split; without val, train counts the images from which val is cut"
    )
    metric: Metric = Field("top1", description="the one headline metric that the field uses for it")
    licence: str = Field(min_length=1, description="licence or terms of use, in one line")
    citation: str = Field(min_length=1, description="whom to cite")
    homepage: str | None = Field(None, description="where its makers describe it")
    archives: tuple[Archive, ...] = Field((), description="the files of the release")
    by_hand: str | None = Field(None, description="what no program can fetch, and how a person gets it")
    version: str = Field(min_length=1, description="changes when the images or splits change")
    summary: str = Field(min_length=1, description="what makes it fine-grained, in some sentences")

    @property
    def class_count(self) -> int | None:
        """How many classes the card says there are."""
        return len(self.classes) if isinstance(self.classes, tuple) else self.classes

    @model_validator(mode="after")
    def _complete(self) -> Self:
        known = (*READERS, *layout_names())
        if self.reader not in known:
            raise ValueError(f"reader: no reader is named {self.reader!r}{suggestion(self.reader, known)}")
        if self.reader in READERS and self.location is None:
            raise ValueError(f"a {self.reader} card needs a location")
        if self.reader == "builtin" and (not isinstance(self.classes, tuple) or self.counts is None):
            raise ValueError("a builtin card needs classes and counts")
        if self.reader == "folder" and (self.level or self.boxes):
            raise ValueError("level and boxes belong to a release's layout; a folder has neither")
        return self


OPTIONS = ("level", "boxes")  # what a reference may set: "aircraft?level=family", "cub200?boxes=true"


def read_card(path: Path, options: dict[str, str] | None = None) -> DatasetCard:
    """Read and validate a dataset's card, with `options` laid over it; BadInput names the file and the key."""
    return parse(DatasetCard, read_toml(path) | (options or {}), str(path))
