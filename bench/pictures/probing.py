"""What the linear probe answers on test images, where it looks, and what the encoder finds alike.

Grad-CAM is that of Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization" (arXiv 1610.02391), equations 1 and 2, on the maps after the encoder's last stage; those of a
transformer are its last block's tokens. As the maps are averaged and judged by a linear probe, it equals CAM (section
3.1 there). Test images are shown here and choose nothing: the probe's strength is that which validation chose.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.data.pack import Pack
from bench.data.source import Split
from bench.encoders import Encoder
from bench.evaluation import linear
from bench.evaluation.examples import Examples, Images
from bench.pictures.album import Mark, Picture, Row, Strip, jpeg
from bench.pictures.scene import MOST_IMAGES, Scene, spread

ANSWERS = 4  # right ones, and wrong ones
QUERIES, NEIGHBOURS = 4, 4
HEAT = torch.tensor([[0.0, 0.0, 0.2], [0.45, 0.05, 0.45], [0.9, 0.3, 0.2], [1.0, 0.8, 0.2], [1.0, 1.0, 0.75]])


@dataclass(frozen=True)
class Probed:
    """A pack's splits under an encoder, and a probe's answers on test: `answers` int64 `[N]`, `weight` `[K,D]`."""

    pack: Pack
    known: Examples
    known_rows: Tensor
    test: Examples
    test_rows: Tensor
    answers: Tensor
    weight: Tensor


def probe(scene: Scene, fingerprint: str, strength: float) -> Probed:
    """Fit the linear probe on train and val, as the protocol does, and ask it about test.

    Splits of more than `MOST_IMAGES` images are thinned out.
    """
    pack = scene.pack(fingerprint)
    train, train_rows = _examples(scene, pack, "train")
    val, val_rows = _examples(scene, pack, "val")
    test, test_rows = _examples(scene, pack, "test")
    known = train.join(val)
    fitted = linear.fit(known.features, strength, len(pack.classes))
    answers = fitted.scores(test.features.x).argmax(1)
    return Probed(pack, known, torch.cat([train_rows, val_rows]), test, test_rows, answers, fitted.weight)


def grad_cam(encoder: Encoder, images: Tensor, weight: Tensor) -> Tensor:
    """Where `weight` `[B,D]` of a probe finds its class in views `[B,3,H,W]`: heat `[B,H,W]` in 0..1.

    A map without any positive part is zero everywhere.
    """
    with torch.enable_grad():
        maps = encoder.maps(encoder.seen(images))[-1].float().requires_grad_()
        score = (maps.mean((2, 3)) * weight.to(maps)).sum()
        (gradient,) = torch.autograd.grad(score, maps)
    importance = gradient.mean((2, 3), keepdim=True)
    heat = F.relu((importance * maps).sum(1, keepdim=True)).detach()
    heat = heat / heat.amax((2, 3), keepdim=True).clamp(min=1e-12)
    return F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def overlay(images: Tensor, heat: Tensor) -> Tensor:
    """Views `[B,3,H,W]` under the colours of their heat `[B,H,W]`."""
    place = heat.clamp(0, 1) * (len(HEAT) - 1)
    low = place.floor().long().clamp(max=len(HEAT) - 2)
    share = (place - low).unsqueeze(-1)
    colours = HEAT.to(heat)[low] * (1 - share) + HEAT.to(heat)[low + 1] * share
    strength = (0.15 + 0.5 * heat).unsqueeze(1)
    return images * (1 - strength) + colours.permute(0, 3, 1, 2) * strength


def cam_strips(scene: Scene, probed: Probed) -> list[Strip]:
    """Grad-CAM of the probe's answers on test: some right ones and some wrong ones."""
    right = probed.answers == probed.test.labels
    kinds: tuple[tuple[str, Mark, Tensor], ...] = (
        ("Grad-CAM, right answers", "right", right),
        ("Grad-CAM, wrong answers", "wrong", ~right),
    )
    note = f"{probed.pack.name}, test images; the heat is of the class that the linear probe answered."
    strips = []
    for title, mark, wanted in kinds:
        chosen = spread(wanted.nonzero()[:, 0], ANSWERS)
        if len(chosen):
            rows = tuple(_cam_row(scene, probed, int(index), mark) for index in chosen)
            strips.append(Strip(title, note, rows, flow=True))
    return strips


def _cam_row(scene: Scene, probed: Probed, index: int, mark: Mark) -> Row:
    rows = probed.test_rows[index : index + 1]
    view = scene.whole(probed.pack.batch(rows))
    answer, truth = int(probed.answers[index]), int(probed.test.labels[index])
    heat = grad_cam(scene.encoder, view, probed.weight[answer : answer + 1])
    said, true = probed.pack.classes[answer], probed.pack.classes[truth]
    told = said if answer == truth else f"{said}, truly {true}"
    seen = Picture(jpeg(view[0]), f"test image of {true}", true)
    hot = Picture(jpeg(overlay(view, heat)[0]), f"Grad-CAM for the answer {said}, which is {mark}", told, mark)
    return Row((seen, hot))


def neighbour_strip(scene: Scene, probed: Probed) -> Strip:
    """Some test images, each with the nearest of train and val by the cosine of their features."""
    chosen = spread(torch.arange(len(probed.test)), QUERIES)
    known = F.normalize(probed.known.features.x, dim=1)
    similar = F.normalize(probed.test.features.x[chosen], dim=1) @ known.T
    rows = []
    for query, likeness in zip(chosen.tolist(), similar, strict=True):
        truth = int(probed.test.labels[query])
        row = [_picture(scene, probed, int(probed.test_rows[query]), truth, "test image of ", "")]
        for place in likeness.argsort(descending=True, stable=True)[:NEIGHBOURS].tolist():
            label = int(probed.known.labels[place])
            mark: Mark = "right" if label == truth else "wrong"
            text = f"{likeness[place]:.2f}"
            row.append(_picture(scene, probed, int(probed.known_rows[place]), label, "neighbour of ", mark, text))
        rows.append(Row(tuple(row)))
    note = f"{probed.pack.name}: a test image, then its nearest among train and validation images (cosine similarity)."
    return Strip("Nearest neighbours", note, tuple(rows))


def _picture(
    scene: Scene, probed: Probed, row: int, label: int, kind: str, mark: Mark, similarity: str = ""
) -> Picture:
    name = probed.pack.classes[label]
    view = scene.whole(probed.pack.batch(torch.tensor([row])))[0]
    alike = f", similarity {similarity}, {'same' if mark == 'right' else 'another'} class" if similarity else ""
    return Picture(jpeg(view), f"{kind}{name}{alike}", f"{name} {similarity}".strip(), mark)


def _examples(scene: Scene, pack: Pack, split: Split) -> tuple[Examples, Tensor]:
    rows = spread(pack.rows(split), MOST_IMAGES)
    images = Images(scene.encoder, pack, rows, scene.trial.training.image_size)
    return Examples(images, pack.labels[rows]), rows
