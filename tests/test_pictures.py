import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data.dataset import resolve
from bench.data.pack import open_pack, pack_size
from bench.encoders import Encoder, build_encoder
from bench.errors import BadData, BadInput
from bench.patches import lay_out
from bench.pictures.album import jpeg, reread
from bench.pictures.make import make_album
from bench.pictures.probing import grad_cam, overlay
from bench.pictures.ranges import ends
from bench.pictures.scene import open_scene, spread
from bench.registry import configure
from bench.space import Domain
from bench.training import checkpoint
from bench.trial import Evaluation, Training, Trial

SIZE = 32
COLOURS = {"red": (200, 40, 40), "green": (40, 180, 40), "<b>blue</b>": (40, 40, 210)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Photographs of three colours, packed, and a folder for results."""
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for number, colour in enumerate(COLOURS.values()):
            folder = root / "photographs" / split / f"colour{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                noise = np.random.default_rng([number, index, len(split)]).normal(0, 12, (40, 40, 3))
                Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    source = resolve(str(root / "photographs")).source
    open_pack(source, pack_size(SIZE), root / "cache", processes=1)
    record = {"data": {source.fingerprint: source.model_dump()}, "candidates": {}}
    return SimpleNamespace(root=root, cache=root / "cache", source=source, record=record)


def trial_of(world: Any, method: str = "simclr", **config: Any) -> Trial:
    fingerprint = world.source.fingerprint
    return Trial(
        method=method,
        method_version=1,
        config=configure(method, config, "test").model_dump(mode="json"),
        data=fingerprint,
        training=Training(image_size=SIZE),
        evaluate=(Evaluation(fingerprint=fingerprint, metric="top1", protocols=("linear",)),),
        protocol_versions={"linear": 1},
        objective="linear",
        seed=0,
    )


def save_encoder(out: Path, trial: Trial) -> Path:
    folder = out / "trials" / trial.pretrain_id[:16]
    tensors = checkpoint.module_tensors(build_encoder(trial.training.backbone, 3))
    checkpoint.save(folder / "encoder.safetensors", tensors, {"epochs": []})
    return folder


def album_of(world: Any, out: Path, trial: Trial, space: dict[str, Any] | None = None, **over: Any) -> Any:
    record = world.record | {"candidates": {"mine": {"method": trial.method, "space": space or {}}}}
    given = {
        "config": json.dumps(trial.model_dump(mode="json")),
        "chosen": {world.source.fingerprint: '{"l2":0.01}'},
        "record": record,
        "out": out,
        "cache": world.cache,
    }
    return make_album("mine", trial.id, **(given | over))


def test_heat_is_where_the_class_has_its_evidence() -> None:
    encoder = Encoder(torch.nn.ModuleDict({"same": torch.nn.Identity()}), [["same"]], [3])
    images = torch.full((1, 3, 8, 8), 0.45)
    images[0, 0, 2, 5] = 1.0
    heat = grad_cam(encoder, images, torch.tensor([[1.0, 0.0, 0.0]]))
    assert heat.shape == (1, 8, 8)
    assert divmod(int(heat.flatten().argmax()), 8) == (2, 5)
    assert float(heat.max()) == 1.0
    assert not grad_cam(encoder, images * 0 + 1.0, torch.tensor([[-1.0, 0.0, 0.0]])).any()  # no evidence for it


@pytest.mark.parametrize("name", ["small", "vit_micro"])
def test_heat_equals_the_class_activation_map_of_a_linear_probe(name: str) -> None:
    # Selvaraju et al. 2017, section 3.1: with pooled maps and a linear layer Grad-CAM is CAM.
    encoder = build_encoder(name, 0).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(2, encoder.dim, generator=torch.Generator().manual_seed(2))
    maps = encoder.maps(images)[-1]
    assert torch.allclose(maps.mean((2, 3)), encoder(images), atol=1e-5)
    expected = torch.einsum("bchw,bc->bhw", maps, weight).relu()
    expected = expected / expected.amax((1, 2), keepdim=True)
    heat = grad_cam(encoder, images, weight)
    low = torch.nn.functional.interpolate(expected[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(heat, low.detach(), atol=1e-4)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_overlay_keeps_what_is_cold_and_colours_what_is_hot() -> None:
    images = torch.full((1, 3, 2, 2), 0.5)
    heat = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    shown = overlay(images, heat)
    assert shown.shape == images.shape
    assert float((shown - images)[..., 0].abs().max()) < 0.1 < float((shown - images)[..., 1].abs().max())


def test_album_of_a_trial_has_every_picture_with_words(world: Any, tmp_path: Path) -> None:
    trial = trial_of(world)
    folder = save_encoder(tmp_path, trial)
    Image.new("RGB", (30, 20), (9, 9, 9)).save(folder / "restored.png")
    space = {
        "gamma.high": {"uniform": [1.0, 3.0]},
        "temperature": {"uniform": [0.1, 0.5]},
        "pretrain.lr": {"choice": [1]},
    }
    album = album_of(world, tmp_path, trial, space)
    titles = [strip.title for strip in album.strips]
    assert "Nearest neighbours" in titles
    assert any(title.startswith("Grad-CAM, right") for title in titles)
    assert [title for title in titles if title.startswith("Views")] == ["Views over the searched range of gamma.high"]
    assert "Saved by the method: restored" in titles
    assert not album.missing
    pictures = [picture for strip in album.strips for row in strip.rows for picture in row.pictures]
    assert all(picture.alt and picture.data.startswith(b"\xff\xd8") for picture in pictures)
    assert album == album_of(world, tmp_path, trial, space)  # the same bytes
    views = next(strip for strip in album.strips if strip.title.startswith("Views"))
    assert [row.caption for row in views.rows] == [
        "gamma.high = 1 (low)",
        "gamma.high = 2 (middle)",
        "gamma.high = 3 (high)",
    ]


def test_neighbours_are_of_train_and_marked_by_class(world: Any, tmp_path: Path) -> None:
    trial = trial_of(world)
    save_encoder(tmp_path, trial)
    album = album_of(world, tmp_path, trial)
    strip = next(strip for strip in album.strips if strip.title == "Nearest neighbours")
    for row in strip.rows:
        query, *others = row.pictures
        assert query.alt.startswith("test image of")
        for other in others:
            same = other.caption.split(" ")[0] == query.caption
            assert other.mark == ("right" if same else "wrong")
    # Plain colours are told apart by any encoder: the nearest is of the same class.
    assert all(row.pictures[1].mark == "right" for row in strip.rows)


def test_jigsaw_shows_its_tiles_and_the_order(world: Any, tmp_path: Path) -> None:
    trial = trial_of(world, "jigsaw", permutations=10, tile=8, grid=2)
    save_encoder(tmp_path, trial)
    strips = album_of(world, tmp_path, trial).strips
    strip = next(strip for strip in strips if strip.title == "What the method is given")
    said = [row.pictures[2].caption.rsplit(" ", 1) for row in strip.rows]
    assert all(start.startswith("as laid out: order ") for start, _ in said)
    assert all(sorted(order) == ["1", "2", "3", "4"] for _, order in said)


def test_tiles_are_laid_out_row_by_row() -> None:
    tiles = torch.stack([torch.full((3, 2, 2), value) for value in (0.1, 0.2, 0.3, 0.4)])
    (whole,) = lay_out(tiles[None], gap=1)
    assert whole.shape == (3, 5, 5)
    assert [round(float(whole[0, y, x]), 1) for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))] == [
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
    ]
    (turned,) = lay_out(tiles[None], torch.tensor([[3, 0, 1, 2]]), gap=1)
    assert [round(float(turned[0, y, x]), 1) for y, x in ((0, 0), (0, 4), (4, 0), (4, 4))] == [0.4, 0.1, 0.2, 0.3]


def test_what_is_not_at_hand_is_a_reason(world: Any, tmp_path: Path) -> None:
    trial = trial_of(world)
    album = album_of(world, tmp_path, trial)
    assert any("encoder" in reason and "not at hand" in reason for reason in album.missing)
    save_encoder(tmp_path, trial)
    album = album_of(world, tmp_path, trial, cache=tmp_path / "elsewhere")
    assert any("not packed" in reason for reason in album.missing)
    assert not (tmp_path / "elsewhere").exists()  # nothing is decoded for a report
    album = album_of(world, tmp_path, trial, chosen={})
    assert any("linear protocol did not judge" in reason for reason in album.missing)
    assert album_of(world, tmp_path, trial, config="{").missing == (
        "No pictures: the trial's configuration is not JSON.",
    )


def test_another_encoder_in_the_file_is_a_reason(world: Any, tmp_path: Path) -> None:
    trial = trial_of(world)
    folder = save_encoder(tmp_path, trial)
    other = checkpoint.module_tensors(build_encoder("vit_micro", 0))
    checkpoint.save(folder / "encoder.safetensors", other, {})
    assert any("another encoder" in reason for reason in album_of(world, tmp_path, trial).missing)


def test_a_method_named_by_data_is_never_imported(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sneaky.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = trial_of(world).model_dump(mode="json") | {"method": "sneaky.method"}
    with pytest.raises(BadInput, match=r"sneaky\.method"):
        open_scene(json.dumps(config), world.record, tmp_path, world.cache)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ({"uniform": (0.0, 1.0)}, (0.0, 0.5, 1.0)),
        ({"log_uniform": (0.01, 1.0)}, (0.01, 0.1, 1.0)),
        ({"integers": (1, 4)}, (1, 2, 4)),
        ({"choice": ("a", "b")}, ("a", "b")),
        ({"choice": (True, False)}, (True, False)),
        ({"uniform": (2.0, 2.0)}, (2.0,)),
    ],
)
def test_ends_of_a_range(domain: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = ends(Domain(**domain))
    assert found == (pytest.approx(expected) if "log_uniform" in domain else expected)


def test_rows_are_spread_evenly() -> None:
    assert spread(torch.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert spread(torch.arange(3), 4).tolist() == [0, 1, 2]


def test_jpegs_are_small_and_equal() -> None:
    image = torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(0))
    data = jpeg(image)
    assert data == jpeg(image.clone())
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == (84, 112)
    assert len(data) < 20_000


def test_damaged_and_huge_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n<svg onload=alert(1)>")
    with pytest.raises(BadData, match=r"broken\.png"):
        reread(broken)
    large = tmp_path / "large.png"
    Image.new("1", (400, 400)).save(large)
    monkeypatch.setattr("bench.pictures.album.MOST_PIXELS", 1000)
    with pytest.raises(BadData, match="too many"):
        reread(large)
