"""Encoders: stages, maps, image sizes, seeds, and torchvision's own networks behind them."""

import copy
import math

import pytest
import torch
import torchvision
from torch.nn import functional as F

from bench.encoders import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, OWN, VisionTransformer, build_encoder, sine_positions
from bench.errors import BadInput, UnknownName

NAMES = ["small", "resnet18", "vit_micro"]
STRIDES = {"small": (2, 4, 8, 16), "resnet18": (4, 8, 16, 32), "vit_micro": (8, 8, 8, 8)}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_maps_have_their_widths_and_strides_and_the_last_one_pooled_is_the_features(name, size):
    encoder = build_encoder(name, 0).eval()
    with torch.no_grad():
        maps, features = encoder.maps(picture(*size)), encoder(picture(*size))
    assert encoder.name == name
    assert len(maps) == len(encoder.stages) == len(encoder.widths) == 4
    for found, width, stride in zip(maps, encoder.widths, STRIDES[name], strict=True):
        assert found.shape == (2, width, size[0] // stride, size[1] // stride)
    assert features.shape == (2, encoder.dim)
    torch.testing.assert_close(features, maps[-1].mean((2, 3)))


@pytest.mark.parametrize("name", NAMES)
def test_the_last_stage_changes_the_last_map_only(name):
    encoder = build_encoder(name, 0).eval()
    own = {id(parameter) for parameter in encoder.parameters()}
    assert {id(parameter) for parameter in encoder.last_stage()} < own
    with torch.no_grad():
        before = encoder.maps(picture(64, 64))
        for parameter in encoder.last_stage():
            parameter.mul_(1.5)
        after = encoder.maps(picture(64, 64))
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    assert same == [True, True, True, False]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_use(name):
    encoder = build_encoder(name, 0)
    encoder(picture(64, 64)).square().sum().backward()
    assert [key for key, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
def test_weights_depend_on_the_seed_alone_and_the_global_stream_is_left_alone(name):
    torch.manual_seed(1)
    one = build_encoder(name, 5).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)
    same, other = build_encoder(name, 5).state_dict(), build_encoder(name, 6).state_dict()
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_is_torchvisions(name):
    plain = torchvision.models.get_model(name, weights=None).eval()
    plain.fc = torch.nn.Identity()
    encoder = build_encoder(name, 0).eval()
    encoder.trunk.load_state_dict(plain.state_dict())
    images = picture(64, 48)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), plain((images - mean) / std))


def test_a_vit_is_torchvisions_blocks_with_fixed_positions_and_no_class_token():
    encoder = build_encoder("vit_micro", 0).eval()
    plain = torchvision.models.VisionTransformer(64, 8, 4, 3, 96, 4 * 96).encoder.eval()
    blocks = [block for number in range(1, 5) for block in getattr(encoder.trunk, f"blocks{number}")]
    plain.layers = torch.nn.Sequential(*blocks)
    plain.ln = encoder.trunk.norm
    images = picture(64, 64)
    patches = F.conv2d(
        (images - encoder.mean) / encoder.std, encoder.trunk.patches.weight, encoder.trunk.patches.bias, 8
    )
    tokens = patches.flatten(2).mT
    plain.pos_embedding = torch.nn.Parameter(sine_positions(8, 8, 96, torch.device("cpu"))[None])
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), plain(tokens).mean(1))


def test_positions_are_the_sines_and_cosines_of_row_and_column():
    found = sine_positions(3, 5, 16, torch.device("cpu"))
    assert found.shape == (15, 16)
    for row in range(3):
        for column in range(5):
            expected = []
            for place in (row, column):
                angles = [place / 10_000 ** (k / 4) for k in range(4)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            assert found[row * 5 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_positions_are_no_parameters_and_tell_patches_apart():
    encoder = build_encoder("vit_micro", 0).eval()
    assert isinstance(encoder, VisionTransformer)
    assert not any("pos" in name for name in encoder.state_dict())
    tokens = encoder.embed(torch.full((1, 3, 32, 32), 0.5))[0].detach()
    assert torch.cdist(tokens, tokens).add(10 * torch.eye(16)).min() > 0.1
    again = encoder.embed(torch.full((1, 3, 64, 64), 0.5))[0].detach()  # a place is the same place in a larger image
    torch.testing.assert_close(again.view(8, 8, -1)[:4, :4], tokens.view(4, 4, -1))


def test_tokens_left_out_do_not_matter_to_the_rest():
    encoder = build_encoder("vit_micro", 0).eval()
    assert isinstance(encoder, VisionTransformer)
    with torch.no_grad():
        tokens = encoder.embed(picture(64, 64))
        after = encoder.blocks(tokens[:, 10:30])
        turned = encoder.blocks(tokens[:, 10:30].flip(1))
    assert [part.shape for part in after] == [(2, 20, 96)] * 4
    torch.testing.assert_close(turned[-1].flip(1), after[-1])


def test_sides_that_are_not_whole_patches_are_refused():
    with pytest.raises(BadInput, match="60 x 64 px are not whole patches of 8 px; try 64"):
        build_encoder("vit_micro", 0)(picture(60, 64))


def test_features_do_not_depend_on_the_neighbours_in_a_batch():
    images = picture(64, 64, 3)
    for name in NAMES:
        encoder = build_encoder(name, 0).eval()
        with torch.no_grad():
            torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]), msg=name)


def half(images: torch.Tensor) -> torch.Tensor:
    return images / 2


@pytest.mark.parametrize("name", NAMES)
def test_what_an_encoder_sees_goes_with_it_and_is_applied_once(name):
    encoder, images = build_encoder(name, 0).eval(), picture(64, 64)
    with torch.no_grad():
        expected, maps = encoder(half(images)), encoder.maps(images)
        encoder.see = half
        for each in (encoder, copy.deepcopy(encoder)):
            assert torch.equal(each(images), expected)
            assert all(torch.equal(one, other) for one, other in zip(each.maps(images), maps, strict=True))
    assert list(encoder.state_dict()) == list(build_encoder(name, 0).state_dict())


def test_cards():
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        build_encoder("resnet81", 0)
    assert {name for name, card in ENCODERS.items() if card.transformer} == {"vit_micro", "vit_s16"}
    for name in set(ENCODERS) - {OWN, "resnet34", "resnet50"}:
        assert isinstance(build_encoder(name, 0), VisionTransformer) == ENCODERS[name].transformer
        assert str(build_encoder(name, 0).dim) in ENCODERS[name].summary
