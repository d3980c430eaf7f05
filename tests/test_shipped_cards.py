"""The cards that ship with the package: complete, and as the field uses the datasets."""

import re
import tomllib
from pathlib import Path

import pytest

from bench.data.card import DatasetCard, read_card
from bench.data.index import SPLITS

CARDS = sorted((Path(__file__).parents[1] / "datasets").glob("*.toml"))

METRICS = {  # the field's convention, one per dataset
    "aircraft": "mean_per_class",
    "cars": "top1",
    "cassava": "top1",
    "cub200": "top1",
    "dogs": "top1",
    "flowers102": "mean_per_class",
    "food101": "top1",
    "pets": "mean_per_class",
}
SIZES = {  # classes, train, val, test as released
    "aircraft": (100, 3334, 3333, 3333),
    "cars": (196, 8144, None, 8041),
    "cassava": (5, 5656, 1889, 1885),
    "cub200": (200, 5994, None, 5794),
    "dogs": (120, 12000, None, 8580),
    "flowers102": (102, 1020, 1020, 6149),
    "food101": (101, 75750, None, 25250),
    "pets": (37, 3680, None, 3669),
}


def test_the_released_datasets_are_those_of_the_field() -> None:
    assert {path.stem for path in CARDS if read_card(path).location is None} == set(METRICS)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_shipped_card_is_complete(path: Path) -> None:
    card = read_card(path)
    assert card.class_count
    assert card.counts is not None
    assert card.counts["train"]
    assert card.counts["test"]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    if card.location is None:
        check_release(path.stem, card)


def check_release(name: str, card: DatasetCard) -> None:
    assert card.metric == METRICS[name]
    assert card.counts is not None
    assert (card.class_count, *(card.counts.get(split) for split in SPLITS[1:])) == SIZES[name]
    assert card.folders
    assert card.archives
    assert all(archive.size and archive.size > 100 for archive in card.archives)
    assert len({archive.file for archive in card.archives}) == len(card.archives)
    assert len({archive.checksum for archive in card.archives}) == len(card.archives)
    for archive in card.archives:
        assert archive.addresses or card.by_hand
        assert all(re.fullmatch(r"https?://[\w.-]+/\S+", address) for address in archive.addresses)
        assert all(address.endswith(archive.file) for address in archive.addresses)
    assert not card.level
    assert not card.boxes


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_shipped_card_says_nothing_twice(path: Path) -> None:
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    card = read_card(path)
    defaults = {key: field.default for key, field in DatasetCard.model_fields.items()}
    assert [key for key, value in given.items() if key != "metric" and value == defaults[key]] == []
    assert card.title != card.summary
