"""Cards: where they are found, what a wrong name or key answers, what a reference resolves to."""

import os
from pathlib import Path

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
        ('"folder"', '"folders"', "reader: no reader is named 'folders'; did you mean 'folder'"),
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


def test_a_builtin_family_is_indexed_without_drawing_it(cards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.data import builtin

    monkeypatch.setattr(builtin, "draw_split", lambda *_: pytest.fail("was drawn"))
    family = builtin.FAMILIES["wings"]
    counts = ", ".join(f"{split} = {count}" for split, count in family.counts.items())
    text = CARD.replace("unlabelled = 0, train = 6, val = 2, test = 2", counts)
    text = text.replace('["blue", "red"]', str(list(family.classes))).replace('"images"', '"wings"')
    (cards / "colours.toml").write_text(text.replace('"folder"', '"builtin"'))
    dataset = resolve("colours")
    assert (dataset.source.location, dataset.source.fingerprint) == ("wings", builtin.fingerprint("wings"))
    assert dataset.counts == family.counts
    assert dataset.index.labels_of("test").tolist() == builtin.split_labels("wings", "test").tolist()
    assert set(dataset.index.labels_of("unlabelled")) == {-1}
    assert dataset.index.files[family.counts["unlabelled"]] == "train/00000"
    check_usable(dataset, "evaluation")


@pytest.mark.parametrize("name", ["leaves", "wings", "shells"])
def test_shipped_families_resolve(name: str) -> None:
    dataset = resolve(name)
    assert dataset.name == name
    check_usable(dataset, "pretraining")
    check_usable(dataset, "evaluation")
