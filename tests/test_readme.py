"""What the README shows works as it stands."""

import re
from pathlib import Path

import pytest
import torch

from bench.cards import card_paths
from bench.draw import Draw
from bench.encoders import build_encoder
from bench.images import ImageBatch
from bench.registry import find_method, method_names
from bench.results.schema import SCHEMA
from bench.sweepfile import load_sweep

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language: str, word: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if word in text]
    return str(found)


def test_the_example_method_trains(tmp_path, monkeypatch):
    (tmp_path / "readme_example").mkdir()
    (tmp_path / "readme_example" / "rotation.py").write_text(block("python", "class Rotation"))
    monkeypatch.syspath_prepend(tmp_path)
    kind = find_method("readme_example.rotation")
    method = kind(kind.Config(dropout=0.1), build_encoder("small", 0))
    images = ImageBatch(torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8), torch.ones(4))
    views = method.views(images, Draw(0, 4), 32)
    assert torch.allclose(views[0][1], views[0][0].rot90(1, (1, 2)))
    losses = method.losses(views, 0.0)
    losses["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.objectives()["loss"])


def test_the_example_sweep_is_read(tmp_path):
    path = tmp_path / "example.toml"
    path.write_text(block("toml", "[space]"))
    sweep = load_sweep(str(path))
    assert set(sweep.candidates["simclr"].space) == {"gamma.low", "pretrain.lr"}


def test_the_example_of_several_candidates_is_read(tmp_path):
    path = tmp_path / "several.toml"
    path.write_text(block("toml", "[candidates.jigsaw]"))
    sweep = load_sweep(str(path))
    assert [sweep.method(name) for name in sweep.candidates] == ["jigsaw", "simclr"]


@pytest.mark.parametrize("page", ["METHODS.md", "SWEEPS.md"])
def test_the_pages_tell_of_every_method_and_sweep(page):
    names = method_names() if page == "METHODS.md" else card_paths("sweeps")
    text = (ROOT / "docs" / page).read_text()
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_two_commands_come_first():
    commands = re.search(r"```\n(.*?)```", README, re.S)
    assert commands
    assert [line.partition("#")[0].strip() for line in commands[1].splitlines()] == ["make run", "make test"]


@pytest.mark.parametrize("word", re.findall(r"^  ([a-z/. _]+?)  ", README, re.M))
def test_the_annotated_tree_names_what_is_there(word):
    for name in word.split():
        assert (ROOT / "bench" / name).exists(), name


def test_the_ledger_page_names_every_column():
    page = (ROOT / "docs" / "LEDGER.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.M) == [(field.name, str(field.type)) for field in SCHEMA]
