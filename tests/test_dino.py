"""DINO's loss and centre against the authors' formula and lightly's, its teacher, and what is frozen."""

import math
from pathlib import Path

import pytest
import torch
from lightly.loss import DINOLoss
from torch import Tensor
from torch.nn import functional as F

from bench.draw import Draw
from bench.encoders import build_encoder
from bench.heads import cosine_momentum
from bench.method import Method
from bench.registry import build
from bench.training.pretrain import build_optimizers, pretrain, train_batch
from methods.dino import Head, Teacher, distillation, teacher_temperature
from tests.test_methods import BATCH, SIZE, TRAINING, batch, pictures


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learn(method: Method, lr: float, steps: int = 20) -> list[dict[str, float]]:
    """The losses of some steps on the same views of the same images."""
    images, optimizers = batch(pictures(), slice(0, 24)), build_optimizers(method.train(), TRAINING)
    found = []
    for step in range(steps):
        draw = Draw(1, len(images))
        for losses in train_batch(method, optimizers, TRAINING, images, draw, step / steps, lr):
            found.append({name: value.item() for name, value in losses.items()})
    return found


def make(encoder: str = "small", **config: object) -> Method:
    torch.manual_seed(0)
    return build("dino", config, build_encoder(encoder, 0))


def outputs(views: int, seed: int, samples: int = 5, classes: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(views, samples, classes, dtype=torch.float64, generator=generator).clamp(-1, 1)


def softmax(values: list[float]) -> list[float]:
    whole = sum(map(math.exp, values))
    return [math.exp(value) / whole for value in values]


def formula(student: Tensor, teacher: Tensor, centre: Tensor, student_temp: float, teacher_temp: float) -> float:
    """Equation 3 of arXiv 2104.14294 with the centring of algorithm 1, in plain loops."""
    total, count = 0.0, 0
    for t, target in enumerate(teacher):
        for s, prediction in enumerate(student):
            if s == t:
                continue
            for row in range(len(target)):
                p = softmax(((target[row] - centre) / teacher_temp).tolist())
                q = softmax((prediction[row] / student_temp).tolist())
                total -= sum(a * math.log(b) for a, b in zip(p, q, strict=True))
                count += 1
    return total / count


@pytest.mark.parametrize("views", [2, 6])
def test_the_loss_is_equation_3_and_lightlys(views):
    student, teacher, centre = outputs(views, 0).requires_grad_(), outputs(2, 1), 0.3 * outputs(1, 2)[0, 0]
    found = distillation(student.unbind(), teacher.unbind(), centre, 0.1, 0.05)
    assert float(found.detach()) == pytest.approx(formula(student.detach(), teacher, centre, 0.1, 0.05), rel=1e-6)
    theirs = DINOLoss(7, student_temp=0.1)
    theirs.center = centre.view(1, 1, -1)
    other = theirs(list(teacher), list(student), teacher_temp=0.05)
    torch.testing.assert_close(found, other, check_dtype=False, rtol=1e-5, atol=0)


def test_the_centre_of_a_step_is_that_of_the_steps_before_as_in_lightly():
    method = make(outputs=7, hidden=8, bottleneck=8).train()
    theirs = DINOLoss(7, student_temp=0.1)
    for step in range(3):
        views = method.views(batch(pictures()), Draw(step, BATCH), SIZE)
        with torch.no_grad():
            twice = [head(trunk(views[0])) for trunk, head in ((method.teacher, method.teacher_head),) for _ in "ab"]
        torch.testing.assert_close(theirs.center.flatten(), method.centre)
        seen = []
        method.teacher_head.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        method.losses(views, 0.5)
        theirs(list(seen[0].chunk(2)), twice, teacher_temp=0.05)  # the centre is updated after the loss was taken
    assert method.centre.abs().max() > 0
    torch.testing.assert_close(theirs.center.flatten(), method.centre)


def test_evaluation_moves_no_centre():
    method = make().eval()
    method.losses(method.views(batch(pictures()), Draw(0, BATCH), SIZE), 0.5)
    assert not method.centre.any()


def test_the_teachers_temperature_rises_and_stays():
    teacher = Teacher(start=0.04, end=0.08, warmup=0.5)
    assert [teacher_temperature(teacher, p) for p in (0, 0.25, 0.5, 0.9)] == pytest.approx([0.04, 0.06, 0.08, 0.08])
    at_once, level = ({"start": 0.01, "end": 0.06, "warmup": 0}, {"start": 0.06, "end": 0.06, "warmup": 0.9})
    assert teacher_temperature(Teacher.model_validate(at_once), 0.0) == 0.06
    assert Teacher.model_validate(at_once) == Teacher.model_validate(level)  # one trial


@pytest.mark.parametrize("norm", [True, False])
def test_the_head_compares_unit_vectors(norm):
    torch.manual_seed(0)
    head = Head(12, 16, 8, 5, norm)
    features = torch.randn(6, 12)
    expected = F.cosine_similarity(head.body(features)[:, None], head.last.weight[None], dim=2)
    torch.testing.assert_close(head(features), expected)
    with torch.no_grad():
        head.last.weight.mul_(7)
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize("encoder", ["small", "vit_micro"])
def test_the_teacher_sees_global_views_only_gets_no_gradient_and_follows(encoder):
    method = make(encoder).train()
    assert not any(p.requires_grad for module in (method.teacher, method.teacher_head) for p in module.parameters())
    seen = []
    method.teacher.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    views = method.views(batch(pictures()), Draw(0, BATCH), SIZE)
    assert [view.shape[2] for view in views] == [SIZE, SIZE, 16, 16]
    method.losses(views, 0.5)["loss"].backward()
    assert seen == [(2 * BATCH, 3, SIZE, SIZE)]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1)
    before = [parameter.clone() for parameter in method.teacher.parameters()]
    method.after_step(0.5)
    step = 1 - cosine_momentum(method.config.teacher.momentum, 0.5)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, step), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_frozen_last_layer_does_not_move(optimizer, tmp_path: Path):
    training = TRAINING.model_copy(update={"optimizer": optimizer, "weight_decay": 0.1, "lr": 0.01, "epochs": 2})
    for freeze, moves in ((1.0, False), (0.5, True)):
        method = make(freeze=freeze, outputs=16)
        before = method.head.last.weight.detach().clone()
        pretrain(method, pictures(), training, 7, state=tmp_path / f"{freeze}.safetensors")
        assert torch.equal(method.head.last.weight, before) != moves


def test_only_the_second_global_view_is_solarised():
    images = batch(pictures())
    plain, solarised = (make(solarize=p).views(images, Draw(0, BATCH), SIZE) for p in (0.0, 1.0))
    for number, (one, other) in enumerate(zip(plain, solarised, strict=True)):
        assert torch.equal(other, torch.minimum(one, 1 - one) if number == 1 else one)


def test_it_learns():
    losses = learn(make(outputs=16, teacher={"momentum": 0.9}), 0.003)
    assert losses[0]["loss"] > 1
    assert losses[-1]["loss"] < 0.5 * losses[0]["loss"]
    assert losses[-1]["spread"] > 0.2
