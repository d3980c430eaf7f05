"""A finished trial put together again: its configuration, its encoder and the packs of its datasets, where at hand.

Nothing is trained, decoded or fetched here, and a method outside the repository is not imported: what a ledger names
is data, not code to run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import mirror
from bench.data.pack import PACK_VERSION, Pack, open_pack, pack_size
from bench.data.source import Source
from bench.encoders import Encoder, build_encoder
from bench.errors import BadInput
from bench.images import ImageBatch
from bench.method import Method
from bench.records import digest, parse
from bench.registry import build, method_names
from bench.training import checkpoint
from bench.trial import Trial
from bench.views import centre_crop, crop

MOST_IMAGES = 4000  # of a split that are looked at; spread evenly over it


@dataclass(frozen=True)
class Scene:
    """A trial with its files: `sources` are the sweep's datasets by fingerprint, `folder` is where its encoder lies."""

    trial: Trial
    sources: Mapping[str, Source]
    folder: Path
    cache: Path

    @cached_property
    def method(self) -> Method:
        """The method as the trial configured it, with the trained encoder, in evaluation mode.

        Raises BadInput where the encoder's file is not at hand, TrialFailed where it cannot be read.
        """
        path = self.folder / "encoder.safetensors"
        if not mirror.fetch(path):
            raise BadInput(f"the encoder's file {path.parent.name}/{path.name} is not at hand")
        tensors, _ = checkpoint.load(path)
        method = self.untrained(self.trial.config)
        try:
            checkpoint.restore_module(method.encoder, tensors)
        except RuntimeError:
            raise BadInput(f"{path.parent.name}/{path.name} holds another encoder than the trial's") from None
        return method

    @property
    def encoder(self) -> Encoder:
        """The trained encoder."""
        return self.method.encoder

    def untrained(self, config: Mapping[str, Any]) -> Method:
        """The method with another configuration and fresh weights."""
        return untrained(self.trial.method, config, self.trial.training.backbone)

    def pack(self, fingerprint: str) -> Pack:
        """A dataset's pack; BadInput where none was made on this machine."""
        source = self.sources.get(fingerprint)
        if source is None:
            raise BadInput("the sweep's record does not name the dataset")
        size = pack_size(self.trial.training.image_size)
        if not (self.cache / "packs" / digest([fingerprint, size, PACK_VERSION])).is_dir():
            raise BadInput(f"dataset {source.name} is not packed on this machine")
        return open_pack(source, size, self.cache)

    def whole(self, images: ImageBatch) -> Tensor:
        """Test views `[B,3,S,S]` of a batch: resize and centre crop."""
        return crop(images, centre_crop(images.aspect), self.trial.training.image_size)


def open_scene(config: str, record: Mapping[str, Any], out: Path, cache: Path) -> Scene:
    """The scene of a ledger row's `config` in a sweep's `record`. Raises BadInput where they are of another version."""
    try:
        trial = parse(Trial, json.loads(config), "the trial's configuration")
    except ValueError:
        raise BadInput("the trial's configuration is not JSON") from None
    if trial.method not in method_names():
        raise BadInput(f"method {trial.method!r} is not one of this repository's")
    data = record.get("data")
    sources = {
        str(key): parse(Source, value, "the sweep's record")
        for key, value in (data if isinstance(data, Mapping) else {}).items()
    }
    return Scene(trial, sources, out / "trials" / trial.pretrain_id[:16], cache)


def untrained(method: str, config: Mapping[str, Any], backbone: str) -> Method:
    """A method with fresh weights, always the same, in evaluation mode; its views do not depend on them."""
    encoder = build_encoder(backbone, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(method, config, encoder, classes=2).eval()


def spread(rows: Tensor, most: int) -> Tensor:
    """At most `most` of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, most).round().long()]
