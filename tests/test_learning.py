"""Each method learns its task, not only runs: on the built-in data at the small profile's size, seed 0 unless it says.

Measured values stand beside the bounds; chance is what a network that has learned nothing gets.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cache import cache_folder
from bench.data.dataset import resolve
from bench.data.pack import Pack, open_pack, pack_size
from bench.draw import mix
from bench.encoders import Encoder, build_encoder
from bench.evaluation.examples import split_examples
from bench.evaluation.protocols import Task, select
from bench.method import Method
from bench.registry import build, find_method
from bench.training.pretrain import History, pretrain
from bench.trial import Training

pytestmark = pytest.mark.slow

SIZE, BATCH = 64, 128
SMALL = Training(image_size=SIZE, epochs=10, batch_size=BATCH, lr=2e-3, precision="fp32")


@cache
def family(name: str) -> Pack:
    return open_pack(resolve(name).source, pack_size(SIZE), cache_folder())


def train(name: str, folder: Path, seed: int = 0, data: str = "leaves", **config: Any) -> tuple[Method, History]:
    kind = find_method(name)
    backbone = kind.backbone or ("vit_micro" if name == "mae" else "small")
    encoder = build_encoder(backbone, mix(seed, 0) % 2**31)
    torch.manual_seed(mix(seed, 1))
    method = build(name, config, encoder, len(family(data).classes))
    training = SMALL.model_copy(update={"backbone": backbone})
    return method, pretrain(method, family(data), training, seed, state=folder / f"{name}{seed}.safetensors")


def validation(encoder: Encoder, data: str = "leaves") -> float:
    """The linear probe's validation score."""
    pack = family(data)
    splits = [split_examples(encoder, pack, split, SIZE) for split in ("train", "val")]
    task = Task(len(pack.classes), pack.source.metric, 0)
    return select("linear", *splits, task).best.scores.value(pack.source.metric)


def test_jigsaw_orders_are_told(tmp_path):
    """Measured: loss 0.71 of ln 100 = 4.61, accuracy 0.83."""
    _, history = train("jigsaw", tmp_path, permutations=100)
    assert history.epochs[-1].validation["loss"] < math.log(100) / 2
    assert history.epochs[-1].validation["accuracy"] > 0.3


def test_rotations_are_told_where_up_is_up(tmp_path):
    """Measured: loss 0.036 of ln 4 = 1.39, accuracy 0.996."""
    _, history = train("rotation", tmp_path, data="shells")
    assert history.epochs[-1].validation["loss"] < math.log(4) / 2


def test_rotations_cannot_be_told_where_nothing_is_upright(tmp_path):
    """The built-in leaves lie at any angle: a network that told their rotations would be cheating. Measured: 1.391."""
    _, history = train("rotation", tmp_path)
    assert history.epochs[-1].validation["loss"] > math.log(4) - 0.1


def test_simclr_pairs_are_found_and_its_features_beat_an_untrained_encoder(tmp_path):
    gains, losses = [], []
    for seed in range(3):
        method, history = train("simclr", tmp_path, seed, gamma={"enabled": False}, crop={"low": 0.3})
        losses.append(history.epochs[-1].losses["loss"])
        untrained = build_encoder("small", mix(seed, 0) % 2**31)
        gains.append(validation(method.encoder) - validation(untrained))
    assert max(losses) < math.log(2 * BATCH - 1) - 1
    assert min(gains) > 0.05
    assert sum(gains) / len(gains) > 0.1


@pytest.mark.parametrize(
    ("name", "loss", "chance", "below"),  # measured: loss in the first and the last epoch
    [
        ("moco", "loss", math.log(1 + 512), 0.3),  # 5.69, 5.63: negatives of one family are alike
        ("byol", "loss", 4.0, 2.0),  # 2.58, 1.24
        ("simsiam", "loss", 0.0, 0.5),  # -0.08, -0.70
        ("barlow_twins", "loss", None, 0.0),  # 9.78, 7.18
        ("vicreg", "loss", None, 0.0),  # 21.3, 20.7
        ("swav", "loss", math.log(64), 0.5),  # 4.02, 3.50
        ("mae", "loss", 1.0, 0.2),  # 1.11, 0.64
        ("colorization", "unweighted", math.log(261), 2.0),  # 5.38, 3.52
        ("supervised", "loss", math.log(5), 0.8),  # 1.51, 0.32
        ("pmg", "loss", None, 0.0),  # 1.88, 0.20
    ],
)
def test_a_loss_falls_below_its_chance_level(name, loss, chance, below, tmp_path):
    _, history = train(name, tmp_path)
    first, last = history.epochs[0].losses[loss], history.epochs[-1].losses[loss]
    assert last < (first if chance is None else chance - below)
