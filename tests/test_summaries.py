"""What `bench list` shows without importing it is what is there."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench import summaries
from bench.cards import card_paths
from bench.data.card import read_card
from bench.encoders import ENCODERS
from bench.errors import UnknownName
from bench.evaluation.protocols import PROTOCOLS
from bench.registry import find_method, method_names
from bench.sweepfile import load_sweep


def test_lines_are_those_of_the_imported_things():
    assert summaries.methods() == {name: find_method(name).summary for name in method_names()}
    assert summaries.encoders() == {name: card.summary for name, card in ENCODERS.items()}
    assert summaries.protocols() == {name: protocol.summary for name, protocol in PROTOCOLS.items()}
    assert summaries.datasets() == {name: read_card(path).summary for name, path in card_paths("datasets").items()}
    assert summaries.sweeps() == {name: load_sweep(name).title for name in card_paths("sweeps")}


def test_listing_imports_nothing_heavy():
    heavy = ("torch", "ray", "pandas", "pyarrow", "numpy")
    code = f"import sys; from bench.summaries import table; table(); print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_broken_card_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "bad.toml").write_text("summary = ")
    (tmp_path / "datasets" / "loud.toml").write_text('summary = "one\\u001b[31m two [bold]three"')
    monkeypatch.setenv("BENCH_CARDS", str(tmp_path))
    lines = summaries.datasets()
    assert lines["bad"].startswith("unreadable: ")
    assert "bad.toml" in lines["bad"]
    cells = list(summaries.table("datasets").columns[2].cells)
    assert any("one [31m two [bold]three" in str(cell) for cell in cells)
    assert "leaves" in lines


def test_another_kind_is_named_back():
    with pytest.raises(UnknownName, match="did you mean 'methods'"):
        summaries.table("method")
