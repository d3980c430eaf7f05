"""A trial: everything that decides a result, and its identity."""

from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from bench.data.source import Metric
from bench.evaluation.finetune import Finetune
from bench.records import Record, digest

ENGINE = 2  # raised whenever the engine would give other results for the same trial


class Training(Record):
    """How an encoder is pretrained, whatever the method."""

    backbone: str = Field("small", description="the encoder's name")
    image_size: int = Field(64, ge=16, le=1024, description="side of a view, pixels")
    epochs: int = Field(10, ge=0, le=10_000, description="passes over the pretraining images")
    batch_size: int = Field(128, ge=2, le=65_536, description="images per step, over all workers")
    optimizer: Literal["sgd", "adam", "adamw", "lars"] = Field("adamw", description="how parameters are updated")
    lr: float = Field(1e-3, gt=0, le=100, description="peak learning rate at this batch size")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="L2 pull; none on biases and normalisation")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD and LARS")
    warmup: float = Field(0.1, ge=0, le=1, description="share of training with a rising rate; cosine after it")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic of the forward pass; auto: bf16 on a GPU that has it, else fp32"
    )


class Evaluation(Record):
    """One dataset that judges the encoder."""

    fingerprint: str
    metric: Metric
    protocols: tuple[str, ...]


class Trial(Record):
    """Everything that decides a result, and nothing else (no names, paths or worker counts)."""

    engine: int = ENGINE
    method: str
    method_version: int
    config: dict[str, Any]
    data: str = Field(description="fingerprint of the pretraining dataset; empty where nothing is trained")
    training: Training
    evaluate: tuple[Evaluation, ...]
    finetune: Finetune | None = Field(None, description="settings of the finetune protocol, where it judges")
    protocol_versions: dict[str, int]
    objective: str
    seed: int = Field(ge=0, lt=2**31)

    @cached_property
    def id(self) -> str:
        """Sha256 of the canonical JSON."""
        return digest(self.model_dump(mode="json"))

    @cached_property
    def pretrain_id(self) -> str:
        """Identity of the encoder alone: trials that only evaluate differently share it."""
        parts = {"engine", "method", "method_version", "config", "data", "training", "seed"}
        return digest(self.model_dump(mode="json", include=parts))

    @cached_property
    def configuration_id(self) -> str:
        """Identity without the seed: the trials of one configuration share it."""
        return digest(self.model_dump(mode="json", exclude={"seed"}))
