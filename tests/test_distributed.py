"""Two workers of batch b are one worker of batch 2b: the loss, the gradients, and a whole training run."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from bench.distributed import average_gradients, gather, rank, share_batch_norms, world_size
from bench.training.pretrain import pretrain
from methods.simclr import nt_xent
from tests.test_methods import TRAINED, TRAINING, make, pictures

WORKERS = 2
# Two epochs of one step each: the second stage of a method that has one, its queue, its centre and its momentum twin
# are in the second loss. Longer runs only show how training amplifies rounding: with its weights changed by 1e-7, one
# process alone ends 1e-2 apart after three epochs of three steps with Adam at 1e-3.
SHORT = TRAINING.model_copy(update={"optimizer": "sgd", "lr": 1e-3, "epochs": 2, "batch_size": 24, "warmup": 0.0})


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 8))
    return nn.Sequential(*layers, nn.BatchNorm1d(8))


def contrast(model: nn.Module) -> dict[str, Any]:
    """One SimCLR step on this worker's half of 12 images; returns loss, gradients, statistics."""
    images = torch.rand(2, 12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    share = 12 // world_size()
    mine = images[:, rank() * share : (rank() + 1) * share]
    first, second = model(torch.cat((mine[0], mine[1]))).chunk(2)
    loss = nt_xent(first, second, 0.2)
    loss.backward()
    average_gradients(model.parameters())
    total = loss.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": total / world_size(), "gradients": gradients, "buffers": dict(model.named_buffers())}


def work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=WORKERS)
    rows = torch.full((2, 1), float(number), requires_grad=True)
    gathered = gather(rows)
    (gathered * torch.arange(4.0)[:, None]).sum().backward()
    found: dict[str, Any] = {"gathered": gathered.detach(), "gradient": rows.grad}
    found["contrast"] = contrast(share_batch_norms(network()))
    for name in TRAINED:
        method = make(name)
        history = pretrain(method, pictures(), SHORT, 7, state=Path(folder) / f"{name}.safetensors")
        found[name] = ([epoch.losses for epoch in history.epochs], method.state_dict())
    torch.save(found, f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(work, args=(str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"{number}.pt") for number in range(WORKERS)]


def test_gather_is_in_rank_order_and_carries_the_gradient_of_all(workers):
    for number, found in enumerate(workers):
        assert found["gathered"].flatten().tolist() == [0, 0, 1, 1]
        # each worker's loss weighs the rows by 0, 1, 2, 3; both workers' gradients add up
        assert found["gradient"].flatten().tolist() == [2 * (2 * number), 2 * (2 * number + 1)]


def test_two_workers_have_the_loss_gradients_and_statistics_of_one(workers):
    alone = contrast(network())
    for found in workers:
        shared = found["contrast"]
        torch.testing.assert_close(shared["loss"], alone["loss"])
        for name, gradient in alone["gradients"].items():
            if name == "0.bias":  # what a normalisation takes away: its gradient is 0, and either's is rounding
                gradient = torch.zeros_like(gradient)
            torch.testing.assert_close(shared["gradients"][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
        for name, buffer in alone["buffers"].items():
            torch.testing.assert_close(shared["buffers"][name], buffer, msg=name)


def changes(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What training has changed in each parameter and statistic."""
    before = make(name).state_dict()
    return {key: value - before[key] for key, value in state.items() if value.is_floating_point()}


@pytest.mark.parametrize("name", TRAINED)
def test_two_workers_train_as_one(name, workers, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    method = make(name)
    history = pretrain(method, pictures(), SHORT, 7, state=tmp_path / "state.safetensors")
    torch.set_num_threads(threads)
    alone = changes(name, method.state_dict())
    whole = torch.cat([change.flatten() for change in alone.values()]).norm()
    for losses, state in (found[name] for found in workers):
        first, second = losses
        assert first == pytest.approx(history.epochs[0].losses, rel=1e-5)
        assert second == pytest.approx(history.epochs[1].losses, rel=1e-3)
        for key, change in changes(name, state).items():
            size = alone[key].norm()
            assert (change - alone[key]).norm() <= 1e-2 * size + 1e-4 * whole, key
        for key, value in workers[0][name][1].items():
            assert torch.equal(state[key], value), f"the workers differ in {key}"
