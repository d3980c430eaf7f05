"""SRGAN: its losses written out, its stages, its content loss, what is kept of it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from bench import superresolution as sr
from bench.draw import Draw
from bench.encoders import OWN, build_encoder
from bench.errors import BadInput, TrialFailed
from bench.images import ImageBatch
from bench.registry import build, configure
from bench.training.pretrain import build_optimizers, train_batch
from bench.trial import Training
from bench.weights import imagenet_weights, weights_file
from methods.srgan import SRGAN, SRGANConfig

TINY = {"blocks": 2, "channels": 8, "judge_channels": 4}
BATCH, SIZE = 4, 32
LAST = 0.99


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder, so that no weights are at hand."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def vgg(hub: Path) -> dict[str, Tensor]:
    """Random VGG-19 weights in the hub folder (its classifier left out, which is not read)."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in torchvision.models.vgg19().features.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {f"features.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    for tensor in state.values():  # random numbers take time: 8 inputs of each layer are enough
        tensor[..., :8, :, :].normal_(0, 0.15, generator=generator) if tensor.ndim > 1 else tensor.fill_(0.01)
    file = weights_file(imagenet_weights("vgg19"))
    assert file.parent == hub
    torch.save(state | {"classifier.0.weight": torch.zeros(1)}, file)
    return state


def make(**config: Any) -> SRGAN:
    torch.manual_seed(0)
    method = build("srgan", TINY | config, build_encoder(OWN, 0))
    assert isinstance(method, SRGAN)
    return method


def photographs(count: int = BATCH) -> ImageBatch:
    coarse = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    pixels = F.interpolate(coarse, (48, 48), mode="bicubic").clamp(0, 1)
    return ImageBatch((pixels * 255).to(torch.uint8), torch.linspace(0.7, 1.5, count))


def step(method: SRGAN, progress: float) -> dict[str, Tensor]:
    """One training step; the losses."""
    training = Training(image_size=SIZE, batch_size=BATCH, backbone=OWN, precision="fp32")
    optimizers = build_optimizers(method.train(), training)
    (losses,) = train_batch(method, optimizers, training, photographs(), Draw(0, BATCH), progress, 1e-3)
    return dict(losses)


def test_views_are_a_crop_and_its_reduction():
    high, low = make().views(photographs(), Draw(0, BATCH), SIZE)
    assert high.shape == (BATCH, 3, SIZE, SIZE)
    assert low.shape == (BATCH, 3, SIZE // 4, SIZE // 4)
    assert torch.equal(low, sr.reduce(high))
    assert 0 <= low.min() < low.max() <= 1
    with pytest.raises(BadInput, match=r"image_size 34.*try 32"):
        make().views(photographs(), Draw(0, BATCH), 34)


def test_the_crop_is_square_in_the_image_and_within_its_bounds():
    whole = make(crop={"low": 1.0, "flip": 0.0})
    high, _ = whole.views(ImageBatch(photographs().pixels, torch.ones(BATCH)), Draw(0, BATCH), 48)
    torch.testing.assert_close(high, photographs().pixels / 255)


@pytest.mark.parametrize("weight", [1e-3, 0.5])
def test_the_losses_are_those_of_the_paper(weight):
    method = make(adversarial=weight).train()
    views = method.views(photographs(), Draw(0, BATCH), SIZE)
    high, low = views
    first = copy.deepcopy(method).losses(views, 0.0)
    then = copy.deepcopy(method).losses(views, LAST)
    restored = method.restore(low)
    squared = ((2 * restored - 1) - (2 * high - 1)).square().mean()
    real, fake = method.judge(high).sigmoid(), method.judge(restored).sigmoid()
    torch.testing.assert_close(first["generator"], squared)
    assert "discriminator" not in first
    torch.testing.assert_close(then["generator"], squared + weight * -fake.log().mean())
    torch.testing.assert_close(then["discriminator"], -(real.log() + (1 - fake).log()).mean())
    torch.testing.assert_close(then["adversarial"], -fake.log().mean())


def test_the_discriminator_is_not_touched_in_the_pixel_stage():
    method = make(pixel_share=0.5)
    parts = {name: [p.detach().clone() for p in group] for name, group in method.objectives().items()}

    def moved(name: str) -> bool:
        pairs = zip(parts[name], method.objectives()[name], strict=True)
        return any(not torch.equal(before, now) for before, now in pairs)

    buffers = {name: value.clone() for name, value in method.discriminator.named_buffers()}
    step(method, 0.49)
    assert moved("generator")
    assert not moved("discriminator")
    assert all(torch.equal(value, buffers[name]) for name, value in method.discriminator.named_buffers())
    step(method, 0.5)
    assert moved("discriminator")


def test_neither_network_is_updated_by_the_others_loss():
    method = make().train()
    losses = method.losses(method.views(photographs(), Draw(0, BATCH), SIZE), LAST)
    groups = method.objectives()
    expected = {name: torch.autograd.grad(losses[name], group, retain_graph=True) for name, group in groups.items()}
    twin = make()
    training = Training(
        image_size=SIZE, batch_size=BATCH, optimizer="sgd", momentum=0, weight_decay=0, precision="fp32"
    )
    optimizers = build_optimizers(twin.train(), training)
    (_,) = train_batch(twin, optimizers, training, photographs(), Draw(0, BATCH), LAST, 0.1)
    for name, group in twin.objectives().items():
        for old, new, gradient in zip(groups[name], group, expected[name], strict=True):
            torch.testing.assert_close(new, old - 0.1 * gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["generator", "discriminator"])
def test_the_encoder_is_a_part_of_the_network_and_not_a_copy(encoder):
    method = make(encoder=encoder, removed=1)
    assert method.encoder is getattr(method, encoder)
    names = [name for name, _ in method.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(method.parameters()))
    before = [p.detach().clone() for p in method.encoder.parameters()]
    step(method, LAST)
    assert any(not torch.equal(a, b) for a, b in zip(before, method.encoder.parameters(), strict=True))
    assert method.encoder(torch.rand(2, 3, 20, 20)).shape == (2, 8 if encoder == "generator" else 32)


def test_removed_blocks_change_the_encoder_and_not_the_generator():
    whole, cut = make(blocks=3), make(blocks=3, removed=2)
    sizes = [sum(p.numel() for p in method.objectives()["generator"]) for method in (whole, cut)]
    assert sizes[0] == sizes[1]
    blocks = [sum(isinstance(m, sr.ResidualBlock) for m in method.encoder.modules()) for method in (whole, cut)]
    assert blocks == [3, 1]


def test_a_configuration_says_one_thing_in_one_way():
    assert SRGANConfig().content == "mse"  # no weights at hand: the paper's SRGAN-MSE, by name
    assert configure("srgan", {}, "test") == configure("srgan", {"content": "auto"}, "test")
    other = {"encoder": "discriminator", "blocks": 4}
    assert configure("srgan", other, "test") == configure("srgan", other | {"removed": 2}, "test")
    alone = configure("srgan", {"pixel_share": 1.0}, "test")
    assert alone == configure("srgan", {"pixel_share": 1.0, "content": "vgg19", "adversarial": 0.1}, "test")
    assert list(make(pixel_share=1.0).objectives()) == ["generator"]
    for wrong, message in (
        ({"removed": 4}, r"removed \(4\) must be less than blocks \(4\)"),
        ({"encoder": "discriminator", "pixel_share": 1.0}, "never trains the discriminator"),
        ({"crop": {"high": 0.3}}, "must not exceed"),
        ({"contents": "mse"}, "did you mean 'content'"),
    ):
        with pytest.raises(BadInput, match=message):
            configure("srgan", wrong, "test")


def test_content_is_measured_by_vgg19_where_its_weights_are_at_hand(vgg):
    assert SRGANConfig().content == "vgg19"
    assert configure("srgan", {"content": "mse"}, "test").model_dump()["content"] == "mse"
    method = make()
    views = method.train().views(photographs(), Draw(0, BATCH), SIZE)
    losses = copy.deepcopy(method).losses(views, LAST)
    network = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["E"])
    network.load_state_dict({name.removeprefix("features."): tensor for name, tensor in vgg.items()})
    high, low = views
    mean, std = method.encoder.mean, method.encoder.std
    with torch.no_grad():  # features 34 and 35: conv5_4 and its ReLU; 36 is the fifth pooling
        fake, real = (network[:36]((images - mean) / std) for images in (method.restore(low), high))
    assert isinstance(network[36], torch.nn.MaxPool2d)
    torch.testing.assert_close(losses["content"], 0.006 * (fake - real).square().mean(), rtol=1e-3, atol=0)
    assert losses["content"] > 0
    torch.testing.assert_close(losses["generator"], losses["content"] + 1e-3 * losses["adversarial"])


@pytest.mark.usefixtures("vgg")
def test_vgg19_is_frozen_and_in_no_checkpoint():
    with_it, without = make(), make(content="mse")
    assert list(with_it.state_dict()) == list(without.state_dict())
    assert len(list(with_it.parameters())) == len(list(without.parameters()))
    losses = step(with_it, LAST)
    assert with_it.content is not None
    assert all(p.grad is None and not p.requires_grad for p in with_it.content._layers.parameters())
    assert losses["generator"].isfinite()


def test_vgg19_is_never_downloaded(hub):
    with pytest.raises(TrialFailed, match=r"not at hand.*vgg19-dcbb9e9d\.pth"):
        make(content="vgg19")
    assert list(hub.iterdir()) == []


def test_figures_compare_with_bicubic_interpolation():
    method = make().eval()
    with torch.no_grad():
        figures = method.validation(photographs(), SIZE)
    assert set(figures) == {"psnr", "ssim", "psnr_bicubic", "ssim_bicubic"}
    assert figures["psnr_bicubic"] > figures["psnr"]  # nothing is learnt yet
    assert 0 <= figures["ssim_bicubic"] <= 1


def test_the_picture_is_a_grid_of_reduced_restored_and_original():
    method = make().eval()
    with torch.no_grad():
        picture = method.pictures(photographs(2), SIZE)["restored"]
    assert picture.shape == (3, 2 * (SIZE + 2) + 2, 3 * (SIZE + 2) + 2)
    cells = picture[:, 1:-1, 1:-1].unflatten(2, (3, SIZE + 2)).unflatten(1, (2, SIZE + 2))
    low, restored, high = cells[:, :, 1:-1, :, 1:-1].permute(3, 1, 0, 2, 4)
    blocks = low.unflatten(3, (8, 4)).unflatten(2, (8, 4))
    assert torch.equal(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))
    torch.testing.assert_close(sr.reduce(high), blocks[:, :, :, 0, :, 0])
    with torch.no_grad():
        torch.testing.assert_close(restored, method.restore(blocks[:, :, :, 0, :, 0]).clamp(0, 1))
