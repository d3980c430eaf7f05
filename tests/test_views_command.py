"""`bench views`: rows over each range, captions, what is told and not drawn, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.cli import app
from bench.draw import Draw
from bench.errors import BadData, BadInput, BenchError
from bench.method import Method
from bench.pictures import sheet as sheets
from bench.pictures.gallery import Gallery, Line, Part, gallery
from bench.pictures.peek import peek
from bench.pictures.photos import Photo, from_dataset, from_files
from bench.pictures.ranges import ends, span
from bench.pictures.scene import untrained
from bench.pictures.sheet import SMALL, TEXT, WIDTH, legible, save, sheet, wrapped
from bench.pictures.viewing import looks
from bench.registry import find_method, method_names
from bench.request import requested_sweep
from bench.space import Domain

SWEEP = """
title = "What do <b>tags</b> and \\u001b[31mcolours\\u001b[0m do?"
method = "simclr"
[space]
"gamma.low" = { uniform = [0.3, 1.0] }
temperature = { log_uniform = [0.01, 1.0] }
[pretrain]
dataset = "leaves"
image_size = 32
[evaluate]
datasets = ["leaves"]
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photograph of 60 x 40 px, dark on the left."""
    pixels = np.random.default_rng(0).integers(60, 255, (40, 60, 3), dtype=np.uint8)
    pixels[:, :30] //= 4
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(SWEEP)
    return path


def of(method: str, photo: Path, *settings: str, draws: int = 2, **space: Any) -> Gallery:
    """The gallery of a method with a space of its own, at 32 px."""
    lines = "\n".join(f'"{name.replace("__", ".")}" = {domain}' for name, domain in space.items())
    card = photo.with_name("sweep.toml")
    text = SWEEP.replace("simclr", method)
    head, _, tail = text.partition('"gamma.low"')
    card.write_text(head + lines + "\n[pretrain]" + tail.partition("[pretrain]")[2])
    sweep = requested_sweep(str(card), settings=settings)
    return gallery(sweep, method, from_files([photo], 32), draws, 0)


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on the pages that are drawn from now on."""
    said: list[str] = []
    write = sheets._Page.write

    def noted(self: Any, text: object, *more: Any) -> None:
        said.append(legible(text))
        write(self, text, *more)

    monkeypatch.setattr(sheets._Page, "write", noted)
    return said


def test_rows_are_the_ends_and_the_middle_and_captions_say_so(
    card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = texts(monkeypatch)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["views", "--sweep", str(card), "--images", "2", "--draws", "3"])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("mine-views.png: 840 x ")
    assert "simclr: Not drawn, as the views stay the same: temperature (0.01 to 1, in the logarithm)." in done.output
    rows = [line for line in said if line.startswith("gamma.low = ")]
    assert rows == ["gamma.low = 0.3, low", "gamma.low = 0.65, middle", "gamma.low = 1, high"] * 2  # two images
    assert any("leaves/train/" in line for line in said)
    assert any(line.endswith("in each: view 1, view 2.") for line in said)
    assert "What do <b>tags</b> and  [31mcolours [0m do?" in said
    with Image.open("mine-views.png") as picture:
        assert picture.width == WIDTH
        assert picture.getpixel((1, 1)) == (255, 255, 255)


def test_only_the_swept_value_differs_between_rows(card: Path, photo: Path) -> None:
    (part,) = gallery(requested_sweep(str(card)), "simclr", from_files([photo], 32), 3, 0).parts
    low, middle, high = part.lines
    assert len(low.draws) == 3
    assert all(len(draw) == 2 for draw in low.draws)  # two views side by side
    for a, b, c in zip(low.draws, middle.draws, high.draws, strict=True):
        assert torch.equal(a[0][0], b[0][0])  # the first view has no gamma
        assert not torch.equal(a[1][0], c[1][0])
        assert float(a[1][0].mean()) >= float(b[1][0].mean()) >= float(c[1][0].mean())  # a larger exponent is darker
    assert not torch.equal(low.draws[0][0][0], low.draws[1][0][0])


def test_the_same_seed_gives_the_same_bytes(card: Path, tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    for name, seed in zip(names, (0, 0, 1), strict=True):
        peek(requested_sweep(str(card)), (), images=1, draws=2, seed=seed, to=tmp_path / name)
    first, second, other = ((tmp_path / name).read_bytes() for name in names)
    assert first == second != other


def test_a_search_that_changes_no_view_shows_them_once(photo: Path) -> None:
    found = of("simclr", photo, temperature="{ log_uniform = [0.01, 1.0] }")
    (part,) = found.parts
    assert [line.caption for line in part.lines] == [""]
    assert "temperature" in found.notes[0]


@pytest.mark.parametrize(
    ("method", "settings", "names"),
    [
        ("jigsaw", ("method.permutations=9",), ("tiles where they belong", "as laid out")),
        ("mae", ("pretrain.backbone=vit_micro",), ("the view", "what the encoder sees of it")),
        ("srgan", ("method.channels=8",), ("reduced to 8 px", "what it is to be restored to")),
        ("colorization", (), ("what the encoder sees", "the colours to tell, in cells")),
        ("colorization", ("method.mode=regression",), ("what the encoder sees", "the colours to tell")),
        ("pmg", (), ("8 x 8 patches", "4 x 4 patches", "2 x 2 patches", "the whole view")),
        ("rotation", (), tuple(f"turned by {turn} degrees" for turn in (0, 90, 180, 270))),
        ("dino", (), ("view 1", "view 2", "view 3", "view 4")),
        ("supervised", (), ("the view",)),
    ],
)
def test_each_method_shows_what_its_network_is_given(
    photo: Path, method: str, settings: tuple[str, ...], names: tuple[str, ...]
) -> None:
    found = of(method, photo, *settings, **{"pretrain__lr": "{ choice = [0.1, 0.2] }"})
    (part,) = found.parts
    assert part.panels == names
    panels = [panel for line in part.lines for draw in line.draws for panel in draw]
    assert len(panels) == 2 * len(names)
    for picture, _ in panels:
        assert picture.dim() == 3
        assert 0 <= float(picture.min()) <= float(picture.max()) <= 1.01
    if method == "jigsaw":
        orders = [said for _, said in panels if said]
        assert len(orders) == 2
        assert all(sorted(said.split()[2]) == list("123456789") for said in orders)


def test_masks_and_cells_and_tiles_follow_their_hyperparameters(photo: Path) -> None:
    (part,) = of("mae", photo, "pretrain.backbone=vit_micro", mask="{ uniform = [0.2, 0.8] }").parts
    hidden = [float((line.draws[0][1][0] == 0.5).float().mean()) for line in part.lines]
    assert hidden[0] < hidden[1] < hidden[2]
    assert [line.caption for line in of("colorization", photo, bin="{ choice = [5, 10, 20, 40] }").parts[0].lines] == [
        "bin = 5",
        "bin = 20",
        "bin = 40",
    ]
    assert of("jigsaw", photo, permutations="{ choice = [10, 100] }").parts[0].title == "permutations"
    (sized,) = of("simclr", photo, pretrain__image_size="{ choice = [24, 32] }").parts
    assert [line.draws[0][0][0].shape[1] for line in sized.lines] == [24, 32]


def test_a_control_has_no_views(photo: Path) -> None:
    found = of("random_init", photo, "confirm.controls=[]", **{"pretrain__lr": "{ choice = [0.1, 0.2] }"})
    assert found.parts == ()
    assert found.notes[-1] == "This method has no views."


def test_a_refused_value_says_why(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("cannot be shown")

    monkeypatch.setattr(Method, "shown", broken)
    said = texts(monkeypatch)
    sheet("title", (), [of("simclr", photo, temperature="{ uniform = [0.1, 0.2] }")])
    assert "refused: cannot be shown" in said


@pytest.mark.parametrize(
    ("domain", "expected", "told"),
    [
        ({"uniform": (0.0, 1.0), "step": 0.25}, (0.0, 0.5, 1.0), "0 to 1"),
        ({"uniform": (0.0, 0.75), "step": 0.25}, (0.0, 0.25, 0.75), "0 to 0.75"),
        ({"integers": (2, 8), "step": 2}, (2, 4, 8), "2 to 8"),
        ({"log_uniform": (0.01, 1.0)}, (0.01, pytest.approx(0.1), 1.0), "0.01 to 1, in the logarithm"),
        ({"choice": (True, False)}, (True, False), "true, false"),
    ],
)
def test_the_middle_lies_on_the_grid(domain: dict[str, Any], expected: Any, told: str) -> None:
    found = Domain(**domain)
    assert ends(found) == expected
    assert span(found) == told


def test_hostile_names_are_written_in_letters_that_the_font_has(tmp_path: Path) -> None:
    name = "<script>\x1b[2J\u202eé ∂ć 中\n" + "w" * 5000
    assert legible(name).startswith("<script> [2J e ?c ? www")
    assert len(legible(name)) < 400
    assert legible("e\u0301") == "e"
    lines = wrapped("w" * 200 + " and then", TEXT, 300)
    assert all(sheets._font(TEXT).getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "").count("w") == 200
    photo = Photo(name, Image.new("RGB", (50, 40), "red"))
    line = Line(name, photo, (((torch.rand(3, 20, 20), name),),))
    picture = sheet(name, [name], [Gallery(name, (Part(name, name, (name,), (line,)),), (name,))])
    assert picture.width == WIDTH
    assert save(picture, tmp_path / "hostile.png") > 0


def test_text_is_large_enough_for_a_phone() -> None:
    assert SMALL * 390 / WIDTH > 8  # points on a screen of 390 points


def test_pictures_of_this_command_are_replaced_and_no_other_file(tmp_path: Path, photo: Path) -> None:
    page = Image.new("RGB", (20, 20), "white")
    mine = tmp_path / "folder" / "views.png"
    save(page, mine)
    save(page, mine)
    before = photo.read_bytes()
    with pytest.raises(BadInput, match=r"photo\.png: is there already and no picture of `bench views`"):
        save(page, photo)
    (tmp_path / "text.png").write_text("mine")
    with pytest.raises(BadInput, match="is there already"):
        save(page, tmp_path / "text.png")
    with pytest.raises(BadInput, match=r"is a PNG; name a file that ends in \.png"):
        save(page, tmp_path / "page.jpg")
    with pytest.raises(BadInput, match="no leave to write"):
        save(page, photo / "below.png")
    assert photo.read_bytes() == before
    assert sorted(path.name for path in mine.parent.iterdir()) == ["views.png"]


def test_a_folder_gets_the_default_name(card: Path, photo: Path, tmp_path: Path) -> None:
    (said, _) = peek(requested_sweep(str(card)), [photo], images=1, draws=1, seed=0, to=tmp_path)
    assert said.startswith(f"{tmp_path / 'mine-views.png'}: 840 x ")


def test_photographs_that_cannot_serve_are_named(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    for name, words in {
        "broken.jpg": "cannot be read as an image: ",
        "text.jpg": "cannot be read as an image: not an image of a known format",
        "absent.jpg": "there is no such image file",
        "": "is a folder",
    }.items():
        with pytest.raises(BadInput, match=words):
            from_files([tmp_path / name], 32)
    with pytest.raises(BadInput, match=r"60 x 40 px is smaller than the views of 64 px.*image_size=32"):
        from_files([photo], 64)


def test_images_of_a_dataset_are_of_train_and_chosen_by_seed(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 6)):
        folder = tmp_path / "set" / split / "c"
        folder.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (20 + index, 20), "red").save(folder / f"{index}.png")
    (tmp_path / "set" / "train" / "c" / "0.png").write_bytes(b"damaged")
    names = {tuple(photo.name for photo in from_dataset(str(tmp_path / "set"), 2, seed)) for seed in range(8)}
    assert len(names) > 2
    assert all("/train/" in name for pair in names for name in pair)
    assert (
        len(from_dataset(str(tmp_path / "set"), 20, 0)) < 6
    )  # the damaged one is passed over, some are for validation
    (tmp_path / "bad" / "train" / "c").mkdir(parents=True)
    (tmp_path / "bad" / "train" / "c" / "0.png").write_bytes(b"damaged")
    with pytest.raises((BadData, BadInput)):
        from_dataset(str(tmp_path / "bad"), 2, 0)


def test_a_small_image_of_a_dataset_is_told(card: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = texts(monkeypatch)
    sweep = requested_sweep(str(card), settings=["pretrain.image_size=96"])
    peek(sweep, (), images=1, draws=1, seed=0, to=tmp_path / "large.png")
    assert "1 of 1 photograph: smaller than the views and enlarged, as in training." in said


def test_unknown_names_have_a_suggestion() -> None:
    with pytest.raises(BenchError, match="did you mean 'simclr_gamma'"):
        requested_sweep("simclr_gama")


@pytest.mark.parametrize("name", sorted({*method_names()} - {"imagenet"}))  # whose weights may not be at hand
def test_every_method_says_how_its_views_look(name: str, photo: Path) -> None:
    backbone = find_method(name).backbone or ("vit_micro" if name == "mae" else "small")
    method = untrained(name, {}, backbone)
    shown = looks(method, Photo("", Image.open(photo)).batch(3, 32), Draw(0, 3), 32)
    assert bool(shown) == method.trains
    for part in shown:
        assert part.pictures.shape[:2] == (3, 3)
        assert part.pictures.dtype == torch.float32
        assert -1e-3 <= float(part.pictures.min()) <= float(part.pictures.max()) <= 1 + 1e-3
        assert len(part.captions) in (0, 3)
