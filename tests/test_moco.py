"""MoCo's losses against the papers' formulas, its queue, its key encoder and its two variants."""

import copy
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightly.loss import NTXentLoss
from torch import Tensor, nn
from torch.nn import functional as F

from bench.distributed import average, average_gradients, rank, share_batch_norms
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.heads import cosine_momentum
from bench.registry import build, configure
from bench.training.pretrain import build_optimizers, pretrain, train_batch
from methods.moco import MoCo, batch_info_nce, enqueue, queue_info_nce
from tests.test_methods import BATCH, SIZE, TRAINING, batch, pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


VARIANTS = ("v2", "v3")
WORKERS = 2


def method_of(seed: int = 0, **config: object) -> MoCo:
    torch.manual_seed(seed)
    method = build("moco", config, build_encoder("small", seed)).train()
    assert isinstance(method, MoCo)
    return method


def rows(count: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(2, count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def info_nce(query: Tensor, keys: list[Tensor], temperature: float) -> float:
    """-log of the softmax over similarities of unit vectors, the first key being the right one."""
    scores = [math.exp(float(query @ key / query.norm() / key.norm()) / temperature) for key in keys]
    return -math.log(scores[0] / sum(scores))


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_the_queue_loss_is_equation_1_of_v1(temperature):
    (query, key), queue = rows(), F.normalize(rows(17, seed=1)[0], dim=1)
    expected = sum(info_nce(q, [k, *queue], temperature) for q, k in zip(query, key, strict=True)) / len(query)
    assert float(queue_info_nce(query, key, queue, temperature)) == pytest.approx(expected, abs=1e-12)


def test_the_queue_loss_is_lightly_s():
    (query, key), queue = rows(), F.normalize(rows(17, seed=1)[0], dim=1)
    other = NTXentLoss(0.2, memory_bank_size=(17, 6))
    other.memory_bank.bank = queue.clone()
    assert float(queue_info_nce(query, key, queue, 0.2)) == pytest.approx(float(other(query, key)), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_batch_loss_is_algorithm_1_of_v3(temperature):
    query, key = rows()
    total = 0.0
    for i, q in enumerate(query):
        others = [k for j, k in enumerate(key) if j != i]
        total += info_nce(q, [key[i], *others], temperature)
    expected = 2 * temperature * total / len(query)
    assert float(batch_info_nce(query, key, temperature)) == pytest.approx(expected, abs=1e-12)


def test_gradients_flow_into_queries_only():
    query, key = rows().requires_grad_().unbind()
    queue = F.normalize(rows(17, seed=1)[0], dim=1).requires_grad_()
    for loss in (queue_info_nce(query, key, queue.detach(), 0.2), batch_info_nce(query, key, 0.2)):
        found = torch.autograd.grad(loss, (query, key), allow_unused=True)
        assert found[0].abs().sum() > 0
        assert found[1] is None


def test_the_queue_is_first_in_first_out():
    queue, oldest = torch.zeros(5, 1), torch.zeros((), dtype=torch.int64)
    kept = [0.0] * 5  # oldest first
    for step in range(7):  # 2 does not divide 5: the ring wraps inside a batch
        keys = [10.0 * step + 1, 10.0 * step + 2]
        enqueue(queue, oldest, torch.tensor(keys)[:, None])
        kept = (kept + keys)[-5:]
        assert torch.roll(queue[:, 0], -int(oldest)).tolist() == kept


def test_a_batch_larger_than_the_queue_leaves_its_last_keys():
    queue, oldest = torch.zeros(3, 1), torch.tensor(2)
    enqueue(queue, oldest, torch.arange(1.0, 9)[:, None])  # 8 keys from place 2: places 2 0 1 2 0 1 2 0
    assert int(oldest) == (2 + 8) % 3
    assert torch.roll(queue[:, 0], -int(oldest)).tolist() == [6, 7, 8]


def test_the_queue_begins_with_random_unit_vectors_and_takes_the_keys_of_each_step():
    method = method_of(queue=20)
    torch.testing.assert_close(method.queue.norm(dim=1), torch.ones(20))
    assert {"queue", "oldest"} < set(method.state_dict())
    begin, views = method.queue.clone(), method.views(batch(pictures()), Draw(0, BATCH), SIZE)
    method.losses(views, 0.0)
    assert torch.equal(method.queue, begin), "the loss alone changes nothing"
    keys = F.normalize(method.key(views[1]), dim=1)
    method.after_step(0.0)
    torch.testing.assert_close(method.queue[:BATCH], keys)
    assert torch.equal(method.queue[BATCH:], begin[BATCH:])
    after = method.queue.clone()
    method.after_step(0.0)
    assert torch.equal(method.queue, after), "keys are taken once"


def test_keys_of_v2_use_running_statistics_that_follow():
    method = method_of(momentum=0.75)
    assert not any(module.training for module in method.key.modules())
    assert all(module.training for module in method.encoder.modules())
    images = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(method.key(images)[:2], method.key(images[:2]))  # a key does not know its batch
    mean, theirs = (module.trunk.stage1[1].running_mean for module in (method.key[0], method.encoder))
    method.losses((images, images), 0.0)
    assert torch.equal(mean, torch.zeros_like(mean)), "keys move no statistics"
    assert theirs.abs().sum() > 0
    method.after_step(0.5)
    torch.testing.assert_close(mean, 0.25 * theirs)
    assert not method.eval().train().key.training
    assert method_of(variant="v3").key.training


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_key_encoder_follows_with_its_momentum(variant):
    method = method_of(variant=variant, momentum=0.9)
    online = [*method.encoder.parameters(), *method.projector.parameters()]
    before = [parameter.clone() for parameter in method.key.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, online, strict=True))
    with torch.no_grad():
        for parameter in online:
            parameter += 1
    method.after_step(0.5)
    share = 1 - {"v2": 0.9, "v3": cosine_momentum(0.9, 0.5)}[variant]
    assert share == pytest.approx({"v2": 0.1, "v3": 0.05}[variant])
    for one, other in zip(method.key.parameters(), before, strict=True):
        torch.testing.assert_close(one.detach(), other + share)


def test_the_loss_of_v3_takes_both_directions():
    method = method_of(variant="v3", temperature=0.5)
    views = method.views(batch(pictures()), Draw(0, BATCH), SIZE)
    queries = [method.predictor(method.projector(method.encoder(view))) for view in views]
    keys = [method.key(view) for view in views]
    expected = batch_info_nce(queries[0], keys[1], 0.5) + batch_info_nce(queries[1], keys[0], 0.5)
    torch.testing.assert_close(method.losses(views, 0.0)["loss"], expected)


def test_what_has_no_effect_is_one_trial():
    assert configure("moco", {"variant": "v3", "queue": 7}, "test") == configure("moco", {"variant": "v3"}, "test")
    assert configure("moco", {"queue": 7}, "test") != configure("moco", {}, "test")
    assert "queue" not in method_of(variant="v3").state_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_the_query_side_only(variant):
    method = method_of(variant=variant)
    losses = method.losses(method.views(batch(pictures()), Draw(0, BATCH), SIZE), 0.0)
    losses["loss"].backward()
    parts = (method.encoder, method.projector, method.predictor)
    assert all(parameter.grad.abs().sum() > 0 for part in parts for parameter in part.parameters())
    assert all(parameter.grad is None for parameter in method.key.parameters())
    updated = {id(parameter) for parameter in method.objectives()["loss"]}
    assert updated == {id(parameter) for part in parts for parameter in part.parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_steps_lower_the_loss_against_the_same_negatives(variant):
    method = method_of(variant=variant, queue=256)
    optimizers, images = build_optimizers(method, TRAINING), batch(pictures())
    views, begin = method.views(images, Draw(1, BATCH), SIZE), copy.deepcopy(dict(method.named_buffers()))
    before = float(method.losses(views, 0.0)["loss"].detach())
    for _ in range(20):
        list(train_batch(method, optimizers, TRAINING, images, Draw(1, BATCH), 0.0, 1e-3))
    if variant == "v2":
        method.queue.copy_(begin["queue"])  # by now it holds these very images twenty times
    assert float(method.losses(views, 0.0)["loss"].detach()) < 0.7 * before


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_has_the_same_queue_and_weights(variant, tmp_path: Path):
    whole = method_of(variant=variant, queue=20)
    pretrain(whole, pictures(), TRAINING, 7, state=tmp_path / "whole")

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(method_of(variant=variant, queue=20), pictures(), TRAINING, 7, state=tmp_path / "cut", on_epoch=stop)
    resumed = method_of(seed=9, variant=variant, queue=20)
    pretrain(resumed, pictures(), TRAINING, 7, state=tmp_path / "cut")
    for (key, value), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def two_steps(variant: str) -> dict[str, Tensor]:
    """Losses, gradients and state after two gentle steps on 8 images, divided among the workers."""
    method = method_of(variant=variant, queue=12)
    share_batch_norms(method)
    world = dist.get_world_size() if dist.is_initialized() else 1
    mine = slice(rank() * BATCH // world, (rank() + 1) * BATCH // world)
    found: dict[str, Tensor] = {}
    parts = (method.encoder, method.projector, method.predictor)
    parameters = [parameter for part in parts for parameter in part.parameters()]
    for step in range(2):
        views = method.views(batch(pictures(), mine), Draw(step, BATCH, rows=mine), SIZE)
        loss = method.losses(views, step / 2)["loss"]
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        average_gradients(parameters)
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 1e-2 * parameter.grad
        method.after_step(step / 2)
        found[f"loss {step}"] = average(loss)
        found[f"gradient {step}"] = torch.cat([parameter.grad.flatten() for parameter in parameters])
    return found | copy.deepcopy(method.state_dict())


def work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=WORKERS)
    torch.save({variant: two_steps(variant) for variant in VARIANTS}, f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(work, args=(str(folder),), nprocs=WORKERS)
    return [torch.load(folder / f"{number}.pt") for number in range(WORKERS)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_workers_are_one(variant, workers):
    alone = two_steps(variant)
    for found in workers:
        assert set(found[variant]) == set(alone)
        for key, value in alone.items():
            torch.testing.assert_close(found[variant][key], value, atol=1e-6, rtol=1e-4, msg=f"{variant} {key}")
            if not key.startswith("loss"):
                assert torch.equal(found[variant][key], workers[0][variant][key]), f"the workers differ in {key}"


def test_the_heads_are_the_papers():
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    v2, v3 = method_of(), method_of(variant="v3")
    assert [type(layer) for layer in v2.projector] == kinds
    assert isinstance(v2.predictor, nn.Identity)
    assert [type(layer) for layer in v3.projector] == [*kinds, nn.BatchNorm1d]
    assert not v3.projector[-1].affine
    assert [type(layer) for layer in v3.predictor] == kinds
