"""Cards: where they are found, what a wrong name or key answers, what a reference resolves to."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.cards import card_paths, find_card
from bench.data.card import DatasetCard, read_card
from bench.data.dataset import check_usable, index_of, resolve
from bench.errors import BadData, BadInput, UnknownName

CARD = """
title = "Two colours"
reader = "folder"
location = "images"
classes = ["blue", "red"]
counts = { unlabelled = 0, train = 6, val = 2, test = 2 }
metric = "macro_f1"
licence = "CC0-1.0"
citation = "none"
version = "1"
summary = "drawn"
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with datasets/colours.toml beside its images."""
    folder = tmp_path / "mine" / "datasets"
    for label, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (8, 8), colour).save(folder / "images" / label / f"{number}.png")
    (folder / "colours.toml").write_text(CARD)
    monkeypatch.setenv("BENCH_CARDS", str(tmp_path / "mine"))
    return folder


def test_cards_are_found_in_the_users_folder_first(cards: Path) -> None:
    assert card_paths("datasets")["colours"] == cards / "colours.toml"
    (cards / "leaves.toml").write_text(CARD)
    assert find_card("datasets", "leaves") == cards / "leaves.toml"


def test_cards_may_lie_directly_in_a_folder(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CARDS", os.pathsep.join(["", str(cards)]))
    assert find_card("datasets", "colours") == cards / "colours.toml"


def test_shipped_cards_lie_beside_the_package() -> None:
    shipped = Path(__file__).parents[1] / "datasets"
    assert set(card_paths("datasets")) == {path.stem for path in shipped.glob("*.toml")}


def test_a_card_is_found_by_its_path(cards: Path) -> None:
    assert find_card("datasets", str(cards / "colours.toml")) == cards / "colours.toml"


@pytest.mark.parametrize("reference", ["colors", "colors.toml", "Colours"])
@pytest.mark.usefixtures("cards")
def test_a_wrong_name_answers_with_the_nearest(reference: str) -> None:
    with pytest.raises(UnknownName, match="did you mean 'colours'"):
        find_card("datasets", reference)


def test_a_wrong_card_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CARDS", "/nowhere/cards")
    with pytest.raises(BadInput, match="BENCH_CARDS: no folder '/nowhere/cards'"):
        card_paths("sweeps")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("metric", "metrik", "unknown key 'metrik'; did you mean 'metric'"),
        ('licence = "CC0-1.0"', "", "key 'licence' is missing"),
        ('"folder"', '"folders"', "reader: .*'builtin' or 'folder'"),
        ("train = 6", "trian = 6", "trian"),
        ('title = "Two colours"', "title = ", "not valid TOML"),
    ],
)
def test_a_faulty_card_names_file_and_key(cards: Path, old: str, new: str, message: str) -> None:
    path = cards / "colours.toml"
    path.write_text(CARD.replace(old, new))
    with pytest.raises(BadInput, match=message) as caught:
        read_card(path)
    assert "colours.toml" in str(caught.value)


def test_a_builtin_card_needs_classes() -> None:
    entries = {"title": "t", "licence": "l", "citation": "c", "version": "1", "summary": "s"}
    with pytest.raises(ValueError, match="needs classes and counts"):
        DatasetCard.model_validate({**entries, "reader": "builtin", "location": "leaves"})


def test_a_card_resolves_to_its_folder_beside_it(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = resolve("colours")
    assert dataset.source.location == str(cards / "images")
    assert (dataset.name, dataset.source.metric) == ("colours", "macro_f1")
    assert dataset.index.classes == ("blue", "red")
    monkeypatch.chdir(cards)
    assert resolve("colours.toml").source == dataset.source


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"red"', '"rad"', r"classes: 'rad' is not among the images; did you mean 'red'"),
        ("test = 2", "test = 3", "counts: test is 3 in the card but 2 images"),
        ('"images"', '"pictures"', "location: no folder"),
    ],
)
def test_a_card_that_its_images_contradict_is_refused(cards: Path, old: str, new: str, message: str) -> None:
    (cards / "colours.toml").write_text(CARD.replace(old, new))
    with pytest.raises(BadInput, match=message):
        resolve("colours")


def test_a_wrong_family_names_card_and_nearest(cards: Path) -> None:
    text = CARD.replace('"folder"', '"builtin"').replace('"images"', '"leafs"')
    (cards / "colours.toml").write_text(text)
    with pytest.raises(UnknownName, match=r"colours.toml: location: .*did you mean 'leaves'"):
        resolve("colours")


def test_a_reference_may_be_a_folder(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = resolve(str(cards / "images"))
    assert (dataset.name, dataset.source.reader) == ("images", "folder")
    monkeypatch.chdir(cards / "images" / "red")
    assert resolve("..").source == dataset.source
    assert resolve(".").index.counts["unlabelled"] == 5


def test_an_unknown_reference_names_the_nearest_card(cards: Path) -> None:
    with pytest.raises(UnknownName, match=r"did you mean 'colours'\?, and there is no such folder"):
        resolve("colour")
    with pytest.raises(UnknownName, match="no such folder"):
        resolve("")
    with pytest.raises(BadInput, match="is a file"):
        resolve(str(cards / "images" / "red" / "0.png"))


def test_changed_data_is_noticed(cards: Path, cache: Path) -> None:
    source = resolve("colours").source
    assert len(index_of(source, cache)) == 10
    Image.new("RGB", (8, 8), (201, 0, 0)).save(cards / "images" / "red" / "0.png")
    with pytest.raises(BadData, match="has changed"):
        index_of(source, cache)
    with pytest.raises(BadData, match="not there"):
        index_of(source.model_copy(update={"location": "/nowhere/at/all"}), cache)


def test_a_builtin_family_is_indexed(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.data import builtin

    calls = []

    def draw(_: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        calls.append(split)
        labels = np.full(4, -1) if split == "unlabelled" else np.arange(4) % 3
        return np.zeros((4, 3, 64, 64), np.uint8), labels.astype(np.int64)

    monkeypatch.setattr(builtin, "draw_split", draw)
    classes = builtin.FAMILIES["wings"].classes
    counts = "unlabelled = 4, train = 4, val = 4, test = 4"
    text = CARD.replace("unlabelled = 0, train = 6, val = 2, test = 2", counts)
    text = text.replace('["blue", "red"]', str(list(classes))).replace('"images"', '"wings"')
    (cards / "colours.toml").write_text(text.replace('"folder"', '"builtin"'))
    first, second = resolve("colours"), resolve("colours")
    assert calls == ["unlabelled", "train", "val", "test"]  # the labels are remembered
    assert first.source == second.source
    assert first.source.location == "wings"
    assert first.index.labels.tolist() == [-1] * 4 + [0, 1, 2, 0] * 3 == second.index.labels.tolist()
    assert first.index.files[4] == "train/00000"
    check_usable(first, "evaluation")
