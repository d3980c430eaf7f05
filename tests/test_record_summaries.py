"""A record's summary says what its columns say, and is never needed."""

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.results import summaries
from bench.results.ledger import Ledger
from bench.results.schema import SCHEMA, Measurement, Membership, TrialFacts, rows_table
from bench.results.selection import COLUMNS, PROVENANCE
from bench.results.summaries import COVERED, read_summaries, summary_of


def measured(metric: str, **more: Any) -> Measurement:
    values: dict[str, Any] = {
        "dataset": "leaves",
        "protocol": "linear",
        "split": "test",
        "metric": metric,
        "value": 0.1,
    }
    return Measurement(**values | more)


def trial(number: int, status: Any = "finished", **more: Any) -> Any:
    swept = {"lr": 0.1 * number, "flip": number % 2 == 0, "name": "\u03b3\U0001f33f" * number}
    place = Membership(sweep="s", sweep_id="v1", stage="search", configuration="simclr", draw=number, swept=swept)
    values: dict[str, Any] = {"config": {"text": "x" * number}, "objective": number / 7, "seed": 2**62 + number}
    values |= {"configuration_id": "c", "method": "simclr", "encoder": "small", "trial_id": f"t{number}"}
    facts = TrialFacts(membership=place, status=status, error="no" if status == "failed" else None, **values | more)
    counts: dict[str, Any] = {"value": None, "confusion": [1, 2, 3, 4], "classes": ["a", "b"], "recall": [1.0, None]}
    rows = [
        measured("top1", split="val", value=0.9),
        measured("top1", headline=True, samples=number, low=1e-300, high=math.pi),
        measured("confusion", **counts),
        measured("empty", value=None),
        measured("top1", dataset="wings", value=-0.0),
        measured("top1", split="val", value=0.8),
        measured("top5", dataset="wings", value=math.nan),
    ]
    return rows_table(facts, rows if status == "finished" else [])


def same(a: pd.DataFrame, b: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(a, b, check_categorical=False)  # categories lie in the order in which they were read


def written(out: Path) -> Ledger:
    ledger = Ledger(out)
    for number in range(5):
        ledger.write(trial(number))
    ledger.write(trial(5, "pruned"))
    ledger.write(trial(6, "failed", objective=None))
    return ledger


def read(ledger: Ledger, **more: Any) -> pd.DataFrame:
    frame, problems = ledger.read(columns=[*COLUMNS, *PROVENANCE], **more)
    assert problems == []
    return frame


@pytest.mark.parametrize("depth", ["first", "scores"])
def test_the_summaries_say_what_the_columns_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth: Any):
    ledger = written(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", None)  # no column is read
        frame = read(ledger, depth=depth)
    assert len(frame) == (7 if depth == "first" else 5 * 4 + 2)
    monkeypatch.setattr(summaries, "_MARK", b"of other")
    same(read(ledger, depth=depth), frame)


def test_what_a_summary_does_not_hold_is_read_from_the_columns(tmp_path: Path):
    ledger = written(tmp_path)
    frame = ledger.read(columns=["trial_id", "chosen"], depth="scores").frame
    assert (len(frame), set(frame["chosen"].dropna())) == (22, {"{}"})
    assert len(ledger.read().frame) == 5 * 7 + 2


@pytest.mark.parametrize("lost", ["a bit", "the summary", "its end", "the mark"])
def test_a_damaged_summary_is_passed_over(tmp_path: Path, lost: str):
    ledger = written(tmp_path)
    before = read(ledger, depth="scores")
    path = next(path for path in ledger.folder.iterdir() if path.name.startswith("t3."))
    data = bytearray(path.read_bytes())
    end = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # where the footer begins
    length = int.from_bytes(data[end - 16 : end - 12], "little")
    assert summary_of(trial(3))[-8:] == data[end - 8 : end]
    if lost == "a bit":
        data[end - 16 - length // 2] ^= 4
    elif lost == "the mark":
        data[end - 1] ^= 1
    else:
        data[end - 16 : end - 12] = (2**31 if lost == "its end" else 0).to_bytes(4, "little")
    path.write_bytes(data)
    same(read(ledger, depth="scores"), before)


def test_a_file_cut_anywhere_is_a_problem_and_no_error(tmp_path: Path):
    ledger = written(tmp_path)
    path = next(path for path in ledger.folder.iterdir() if path.name.startswith("t3."))
    data = path.read_bytes()
    for size in (0, 1, 7, 8, 30, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        frame, problems = ledger.read(columns=COLUMNS, depth="scores")
        assert set(frame["trial_id"]) == {f"t{number}" for number in (0, 1, 2, 4, 5, 6)}
        assert [str(path) in line for line in problems] == [True]


def test_a_long_configuration_has_a_summary_too(tmp_path: Path):
    text = "x" * 3 * summaries._TAIL
    path = Ledger(tmp_path).write(trial(1, config={"text": text}))
    table, places, lacking = read_summaries([path, tmp_path / "gone"], ["config", "value"], SCHEMA, scores=True)
    assert (places.tolist(), lacking) == ([0] * 4, [1])
    assert all(text in each for each in table["config"].to_pylist())


def test_a_table_whose_trial_differs_between_rows_has_no_summary():
    table = pa.concat_tables([trial(1), trial(1, objective=0.3)])
    assert summary_of(table) == b""
    assert summary_of(SCHEMA.empty_table()) == b""


def test_other_readers_do_not_see_the_summaries(tmp_path: Path):
    table = trial(2)
    path = Ledger(tmp_path).write(table)
    assert summary_of(table) in path.read_bytes()
    found = [pq.read_table(path), pa.table(duckdb.read_parquet(str(path)).to_arrow_table())]
    assert [each.select(["trial_id", "metric"]).to_pylist() for each in found] == [
        table.select(["trial_id", "metric"]).to_pylist()
    ] * 2
    parquet = pq.read_metadata(path)
    last = parquet.row_group(0).column(parquet.num_columns - 1)
    assert path.read_bytes().index(summary_of(table)) == last.dictionary_page_offset + last.total_compressed_size


def test_the_report_needs_nothing_but_the_summaries():
    assert {*COLUMNS, *PROVENANCE} <= COVERED
    assert np.setdiff1d(SCHEMA.names, list(COVERED)).tolist() == [
        "chosen",
        "classes",
        "confusion",
        "f1",
        "precision",
        "recall",
    ]
