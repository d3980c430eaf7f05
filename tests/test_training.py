"""Optimisers, schedule and checkpoints."""

import math

import pytest
import torch
from torch import nn

from bench.errors import BadInput, TrialFailed
from bench.training import checkpoint
from bench.training.optimisers import LARS, build_optimizer, rate
from bench.training.pretrain import pretrain, steps_per_epoch
from bench.trial import Training
from tests.test_methods import TRAINING, make, pictures


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine():
    training = Training(lr=2.0, warmup=0.25)
    assert rate(training, 0.0) == 0.0
    assert rate(training, 0.125) == pytest.approx(1.0)
    assert rate(training, 0.25) == pytest.approx(2.0)
    assert rate(training, 0.625) == pytest.approx(1.0)
    assert rate(training, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert rate(Training(lr=2.0, warmup=0.0), 0.0) == pytest.approx(2.0)


def test_lars_follows_the_papers_formula():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([1.0]))
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0, "adapt": False}]
    lars = LARS(groups, lr=0.5, momentum=0.9)
    moment, expected = torch.zeros(1, 2), weight.detach().clone()
    for slope in ([[1.0, 0.0]], [[0.0, 2.0]]):
        gradient = torch.tensor(slope)
        weight.grad, bias.grad = gradient.clone(), torch.tensor([2.0])
        pull = gradient + 0.1 * expected
        moment = 0.9 * moment + pull * 1e-3 * expected.norm() / pull.norm()
        expected = expected - 0.5 * moment
        lars.step()
    torch.testing.assert_close(weight.detach(), expected)
    assert lars.param_groups[0]["adapt"]
    bare = build_optimizer(Training(optimizer="lars", weight_decay=0.0), [weight, bias])
    assert [group["adapt"] for group in bare.param_groups] == [True, False]
    assert bias.item() == pytest.approx(1.0 - 0.5 * 2.0 - 0.5 * (0.9 * 2.0 + 2.0))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_only_weights_decay(name):
    layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = build_optimizer(Training(optimizer=name, weight_decay=0.3), list(layer.parameters()))
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.3, 1: 0.0}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_optimiser_states_survive_a_checkpoint(name, tmp_path):
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(4, 3)

    def step(layer: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int = 0) -> None:
        for number in range(start, start + count):
            optimizer.zero_grad()
            layer(torch.full((2, 4), float(number + 1))).square().sum().backward()
            optimizer.step()

    training = Training(optimizer=name, lr=1e-3)
    whole = model()
    step(whole, build_optimizer(training, list(whole.parameters())), 6)
    first = model()
    optimizer = build_optimizer(training, list(first.parameters()))
    step(first, optimizer, 3)
    path = tmp_path / "state.safetensors"
    tensors = checkpoint.module_tensors(first) | checkpoint.optimizer_tensors({"loss": optimizer})
    checkpoint.save(path, tensors, {"epoch": 3})
    second = nn.Linear(4, 3)
    restored = build_optimizer(training, list(second.parameters()))
    tensors, facts = checkpoint.load(path)
    assert facts["epoch"] == 3
    checkpoint.restore_module(second, tensors)
    checkpoint.restore_optimizers({"loss": restored}, tensors)
    step(second, restored, 3, start=3)
    assert torch.equal(second.weight, whole.weight)


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    path = tmp_path / "state.safetensors"
    checkpoint.save(path, {"a": torch.arange(10)}, {})
    whole = path.read_bytes()
    for size in (0, 5, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(TrialFailed, match=r"state\.safetensors: not a readable checkpoint"):
            checkpoint.load(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_batch_larger_than_the_data_names_one_that_fits():
    assert steps_per_epoch(100, 32) == 3
    with pytest.raises(BadInput, match=r"--set pretrain\.batch_size=64"):
        steps_per_epoch(100, 128)
    assert math.log2(64) == 6


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_a_parameter_may_get_its_first_gradient_late(name):
    training = Training(optimizer=name, lr=0.1, weight_decay=0.0)
    early, late = (nn.Parameter(torch.ones(2, 3, 3, 3).contiguous(memory_format=torch.channels_last)) for _ in range(2))
    optimizer = build_optimizer(training, [early, late])
    early.grad = torch.ones_like(early)
    optimizer.step()
    assert not torch.equal(early, late)
    assert torch.equal(late, torch.ones_like(late))
    late.grad = torch.ones_like(late)
    optimizer.step()
    alone = nn.Parameter(torch.ones_like(early))
    alone.grad = torch.ones_like(alone)
    build_optimizer(training, [alone]).step()
    torch.testing.assert_close(late, alone)


def test_a_figure_that_is_not_finite_fails_the_trial_by_name(tmp_path, monkeypatch):
    method = make("rotation")
    monkeypatch.setattr(type(method), "validation", lambda *_: {"accuracy": torch.tensor(float("inf"))})
    with pytest.raises(TrialFailed, match=r"'val accuracy' is not finite in epoch 1"):
        pretrain(method, pictures(), TRAINING, 0, state=tmp_path / "state.safetensors")
