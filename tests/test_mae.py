"""MAE's masks, patches and loss: what the encoder sees, what counts, what is drawn."""

import pytest
import torch
from lightly.models.utils import patchify as lightly_patchify
from torch import Tensor

from bench.draw import Draw
from bench.encoders import ENCODERS, build_encoder
from bench.errors import BadInput
from bench.method import Method
from bench.registry import build, find_method
from bench.training.pretrain import build_optimizers, train_batch
from methods.mae import masked_error, patchify, take, unpatchify, visible
from tests.test_methods import BATCH, SIZE, TRAINING, batch, pictures

PATCH = 8


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


def make(**config: object) -> Method:
    torch.manual_seed(0)
    return build("mae", config, build_encoder("vit_micro", 0))


def drawn(method: Method, seed: int = 1) -> tuple[Tensor, Tensor]:
    images, order = method.views(batch(pictures()), Draw(seed, BATCH), SIZE)
    return images, order


def hidden_pixels(order: Tensor, seen: int, height: int) -> Tensor:
    """Booleans `[B,3,H,W]`: the pixels of the patches after the first `seen` of `order`, patch by patch."""
    mask = torch.zeros(len(order), 3, height, height, dtype=torch.bool)
    for row, patches in enumerate(order[:, seen:].tolist()):
        for patch in patches:
            top, left = divmod(patch, height // PATCH)
            mask[row, :, top * PATCH : (top + 1) * PATCH, left * PATCH : (left + 1) * PATCH] = True
    return mask


def test_patches_are_cut_row_by_row_and_put_together_again():
    images = torch.rand(2, 3, 16, 24)
    patches = patchify(images, 8)
    assert patches.shape == (2, 6, 192)
    torch.testing.assert_close(patches[:, 4].view(2, 3, 8, 8), images[:, :, 8:16, 8:16])
    assert torch.equal(unpatchify(patches, 8, 16), images)
    # lightly has the channels of a pixel side by side, as the authors; a permutation of a patch changes no mean
    square = images[:, :, :, :16]
    theirs = lightly_patchify(square, 8).view(2, 4, 64, 3).mT.flatten(2)
    assert torch.equal(patchify(square, 8), theirs)


@pytest.mark.parametrize(("patches", "mask", "seen"), [(64, 0.75, 16), (196, 0.75, 49), (4, 0.95, 1), (4, 0.05, 3)])
def test_a_quarter_is_seen(patches, mask, seen):
    assert visible(patches, mask) == seen


def test_every_sample_has_a_mask_of_its_own_that_is_a_permutation():
    _, order = drawn(make())
    assert order.shape == (BATCH, 16)
    assert torch.equal(order.sort(1).values, torch.arange(16).expand(BATCH, -1))
    assert len({tuple(row) for row in order.tolist()}) == BATCH


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_the_mean_over_masked_pixels(normalise):
    method = make(normalise=normalise)
    images, order = drawn(method)
    with torch.no_grad():
        restored = method.restore(images, order)
        loss = method.losses((images, order), 0.0)["loss"]
    pixels = (images - method.encoder.mean) / method.encoder.std
    if normalise:  # each patch by its own mean and unbiased deviation, as the authors' code
        for top in range(0, SIZE, PATCH):
            for left in range(0, SIZE, PATCH):
                part = pixels[:, :, top : top + PATCH, left : left + PATCH]
                deviation = (part.var((1, 2, 3), keepdim=True) + 1e-6) ** 0.5
                pixels[:, :, top : top + PATCH, left : left + PATCH] = (part - part.mean((1, 2, 3), True)) / deviation
    mask = hidden_pixels(order, 4, SIZE)
    error = (unpatchify(restored, PATCH, SIZE) - pixels)[mask].square().mean()
    torch.testing.assert_close(loss, error)


def test_targets_of_visible_patches_do_not_count_and_masked_ones_do():
    method = make()
    images, order = drawn(method)
    hidden = order.argsort(1) >= 4
    with torch.no_grad():
        restored, targets = method.restore(images, order), method.targets(images)
    loss = masked_error(restored, targets, hidden)
    changed = targets + torch.rand(targets.shape) * ~hidden[:, :, None]
    assert torch.equal(masked_error(restored, changed, hidden), loss)
    assert not torch.equal(masked_error(restored, targets + hidden[:, :, None], hidden), loss)


def test_the_encoder_sees_the_visible_patches_only():
    method = make().eval()
    images, order = drawn(method)
    mask = hidden_pixels(order, 4, SIZE)
    with torch.no_grad():
        latent = method.encode(images, order)
        assert latent.shape == (BATCH, 4, method.encoder.dim)
        assert torch.equal(method.encode(torch.where(mask, torch.rand(images.shape), images), order), latent)
        assert not torch.equal(method.encode(torch.where(mask, images, torch.rand(images.shape)), order), latent)


def test_restored_patches_are_in_the_order_of_the_image():
    # With the decoder's blocks left out, a patch's output depends on its own token and place only.
    method = make().eval()
    method.blocks = torch.nn.Identity()
    images, order = drawn(method)
    seen, mask = order[:, :4], hidden_pixels(order, 4, SIZE)
    with torch.no_grad():
        whole = method.restore(images, order)
        other = method.restore(torch.where(mask, images, 1 - images), order)
    changed = (whole != other).any(2)
    assert torch.equal(changed.nonzero()[:, 1].view(BATCH, 4), seen.sort(1).values)


def test_take_picks_tokens_by_image():
    tokens = torch.arange(24.0).view(2, 4, 3)
    index = torch.tensor([[3, 0], [1, 2]])
    assert torch.equal(take(tokens, index), torch.stack([tokens[0, [3, 0]], tokens[1, [1, 2]]]))


def test_pictures_show_what_was_seen_restored_and_the_original():
    method = make(normalise=False).eval()
    images = pictures().batch(pictures().rows("val"))
    with torch.no_grad():
        (picture,) = method.pictures(images, SIZE).values()
        view, order = method._fixed(images, SIZE)
        restored = unpatchify(method.restore(view, order), PATCH, SIZE) * method.encoder.std + method.encoder.mean
    cell = SIZE + 2  # make_grid's border
    assert picture.shape == (3, 3 * cell + 2, len(images) * cell + 2)
    rows = [picture[:, 2 + row * cell : 2 + row * cell + SIZE, 2 : 2 + SIZE] for row in range(3)]
    mask = hidden_pixels(order, 4, SIZE)[0]
    torch.testing.assert_close(rows[0], view[0].masked_fill(mask, 0.5))
    torch.testing.assert_close(rows[1], torch.where(mask, restored[0].clamp(0, 1), view[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows[2], view[0])


def test_validation_has_the_same_masks_each_time():
    method, pack = make().eval(), pictures()
    with torch.no_grad():
        one, other = (method.validation(pack.batch(pack.rows("val")), SIZE) for _ in range(2))
    assert one == other
    assert list(one) == ["restoration"]


def test_it_needs_a_transformer():
    kind = find_method("mae")
    for name, card in ENCODERS.items():
        if card.transformer:
            kind.check(kind.Config(), name)
        else:
            with pytest.raises(BadInput, match="vit_micro or vit_s16"):
                kind.check(kind.Config(), name)
    with pytest.raises(BadInput, match="VisionTransformer"):
        build("mae", {}, build_encoder("small", 0))
    method = make()
    views = method.views(batch(pictures()), Draw(0, BATCH), 30)
    with pytest.raises(BadInput, match="try 32"):
        method.losses(views, 0.0)


def test_it_learns():
    losses = [found["loss"] for found in learn(make(normalise=False), 0.003)]
    assert losses[-1] < 0.8 * losses[0]
