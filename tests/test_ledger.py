"""The ledger: one schema for all readers, whole files or none, and names that answer without opening."""

import hashlib
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from bench.errors import UnknownName
from bench.results.ledger import Ledger
from bench.results.schema import SCHEMA, Measurement, Membership, TrialFacts, rows_table

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def ident(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def member(sweep: str = "gamma", stage: Any = "search", **more: Any) -> Membership:
    more.setdefault("configuration", "best")
    return Membership(sweep=sweep, sweep_id=more.pop("sweep_id", "v1"), stage=stage, **more)


def facts(name: object = 0, membership: Membership | None = None, status: Any = "finished", **more: Any) -> TrialFacts:
    values: dict[str, Any] = {
        "trial_id": ident(name),
        "membership": membership or member(draw=3, swept={"gamma.low": 0.5}),
        "configuration_id": "c1",
        "method": "simclr",
        "encoder": "small",
        "seed": 0,
        "status": status,
        "config": {"epochs": 3, "method": {"gamma": {"low": 0.5}}},
        "objective": 0.61,
        "error": "ValueError: no" if status == "failed" else None,
        "device_seconds": 12.5,
        "started_at": NOON,
        "finished_at": NOON,
    }
    return TrialFacts(**values | more)


def score(**more: Any) -> Measurement:
    values: dict[str, Any] = {"dataset": "leaves", "protocol": "linear", "split": "test", "metric": "top1"}
    return Measurement(**values | {"value": 0.7, "headline": True, "samples": 250, "low": 0.65, "high": 0.75} | more)


def confusion() -> Measurement:
    return score(metric="confusion", value=None, headline=False, confusion=[3, 1, 0, 4], classes=["a", "b"])


def write(ledger: Ledger, name: object, membership: Membership | None = None, status: Any = "finished", **more: Any):
    measured = [score(), confusion()] if status == "finished" else []
    return ledger.write(rows_table(facts(name, membership, status, **more), measured))


def test_rows_have_exactly_the_schema_and_the_values():
    chosen = score(protocol="knn", variant="k=20", chosen={"k": 20})
    table = rows_table(facts(versions={"torch": "2.14.1"}), [chosen, confusion()])
    assert table.schema.equals(SCHEMA, check_metadata=True)
    first, second = table.to_pylist()
    assert (first["variant"], first["chosen"], first["value"]) == ("k=20", '{"k":20}', 0.7)
    assert first["config"] == '{"epochs":3,"method":{"gamma":{"low":0.5}}}'
    assert first["versions"] == '{"torch":"2.14.1"}'
    assert (first["swept_numbers"], first["draw"], first["reused"]) == ([("gamma.low", 0.5)], 3, False)
    assert first["started_at"] == NOON
    assert (second["value"], second["confusion"], second["classes"]) == (None, [3, 1, 0, 4], ["a", "b"])


def test_every_field_says_what_it_is_and_numbers_say_their_unit():
    assert all(field.metadata[b"doc"] for field in SCHEMA)
    units = {field.name: field.metadata.get(b"unit") for field in SCHEMA}
    assert units["wall_seconds"] == b"s"
    assert units["images_per_second"] == b"images/s"
    assert units["peak_memory_bytes"] == b"bytes"


def test_a_pruned_and_a_failed_trial_have_one_row():
    (pruned,) = rows_table(facts(status="pruned")).to_pylist()
    assert (pruned["metric"], pruned["split"], pruned["value"], pruned["dataset"]) == ("objective", "val", 0.61, None)
    (failed,) = rows_table(facts(status="failed", error="RuntimeError:\n  two\tlines")).to_pylist()
    assert failed["error"] == "RuntimeError: two lines"
    assert (failed["metric"], failed["value"]) == (None, None)


def test_confusion_counts_may_be_numpy():
    cell = score(metric="confusion", value=None, confusion=np.array([1, 2, 3, 4]), classes=["a", "b"])
    assert rows_table(facts(), [cell]).to_pylist()[0]["confusion"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: member(stage="serach"), "stage must be one of search, confirm"),
        (lambda: member(role="boss"), "role must be one of"),
        (lambda: facts(status="done"), "status must be one of finished, pruned, failed"),
        (lambda: facts(error="x"), "a failed trial needs an error"),
        (lambda: facts(status="failed", error=None), "a failed trial needs an error"),
        (lambda: facts(trial_id="../x"), "letters and digits only"),
        (lambda: score(split="train"), "split must be one of val, test"),
        (lambda: score(confusion=[1]), "on rows of the metric 'confusion'"),
        (lambda: score(metric="confusion", confusion=[1, 2], classes=["a", "b"]), "2 counts for 2 classes"),
        (lambda: rows_table(facts()), "finished trial cannot have 0"),
        (lambda: rows_table(facts(status="pruned"), [score()]), "pruned trial cannot have 1"),
    ],
)
def test_a_wrong_row_is_refused_where_it_is_made(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_pandas_pyarrow_and_duckdb_read_the_folder_as_it_is(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member(swept={"gamma.low": 0.5}))
    write(ledger, 2, member("other sweep", swept={"optimizer": "sgd", "gamma.both": True}))
    write(ledger, 3, member("third"), "pruned")
    write(ledger, 4, member("third"), "failed")
    (ledger.folder / ".half.partial").write_bytes(b"PAR1 half")
    expected = {"gamma", "other sweep", "third"}
    assert set(pd.read_parquet(ledger.folder)["sweep"]) == expected
    table = pyarrow.dataset.dataset(ledger.folder).to_table()
    assert table.schema.equals(SCHEMA)
    assert table.num_rows == 6
    query = f"select sweep, count(*), max(swept_numbers['gamma.low']) from '{ledger.folder}/*.parquet' group by sweep"
    rows = {sweep: (count, low) for sweep, count, low in duckdb.sql(query).fetchall()}
    assert rows == {"gamma": (2, 0.5), "other sweep": (2, None), "third": (2, None)}


def test_read_gives_typed_columns_of_what_was_swept(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member(swept={"lr": 0.1, "layers": 3, "flip": True, "opt": "sgd", "blur": 0.5, "mixed": 2}))
    write(ledger, 2, member(swept={"lr": 0.2, "flip": False, "blur": None, "mixed": "auto", "sizes": [1, 2]}))
    frame, problems = ledger.read()
    assert problems == []
    assert len(frame) == 4
    rows = frame.drop_duplicates("trial_id").set_index("trial_id").loc[[ident(1), ident(2)]]
    assert rows["param.lr"].tolist() == [0.1, 0.2]
    assert frame["param.lr"].dtype == frame["param.blur"].dtype == np.dtype("float64")
    assert rows["param.flip"].tolist() == [True, False]
    assert frame["param.flip"].dtype == pd.BooleanDtype()
    assert rows["param.opt"].isna().tolist() == [False, True]
    assert rows["param.blur"].isna().tolist() == [False, True]
    assert rows["param.mixed"].tolist() == ["2", "auto"]
    assert rows["param.sizes"].iloc[1] == "[1,2]"
    assert frame["seed"].dtype == pd.Int64Dtype()
    assert frame["reused"].dtype == pd.BooleanDtype()
    assert str(frame["started_at"].dtype) == "datetime64[us, UTC]"
    assert "swept_numbers" not in frame


def test_read_one_sweep_and_some_columns(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member("a"))
    write(ledger, 2, member("b"))
    frame = ledger.read("b", ["value", "trial_id"]).frame
    assert frame.columns.tolist() == ["value", "trial_id"]
    assert set(frame["trial_id"]) == {ident(2)}
    with pytest.raises(UnknownName, match="did you mean 'value'"):
        ledger.read(columns=["valu"])


def test_a_missing_folder_reads_as_an_empty_frame_of_the_same_types(tmp_path: Path):
    empty = Ledger(tmp_path / "nothing").read()
    assert (len(empty.frame), empty.problems) == (0, [])
    write(Ledger(tmp_path), 1, member())
    full = Ledger(tmp_path).read().frame
    assert empty.frame.dtypes.drop(["config", "versions"]).equals(full.dtypes.drop(["config", "versions"]))
    assert not (tmp_path / "nothing").exists()


def test_files_that_cannot_be_used_are_reported_and_the_rest_is_read(tmp_path: Path):
    ledger = Ledger(tmp_path)
    good = write(ledger, 1)
    cut = write(ledger, 2)
    cut.write_bytes(cut.read_bytes()[:-100])
    middle = write(ledger, 3)
    data = bytearray(middle.read_bytes())
    data[4:3000] = bytes(2996)
    middle.write_bytes(data)
    empty = write(ledger, 4)
    empty.write_bytes(b"")
    foreign = ledger.folder / good.name.replace(ident(1), ident(5))
    pq.write_table(pa.table({"x": [1]}), foreign)
    stranger = ledger.folder / "notes.parquet"
    pq.write_table(pa.table({"x": [1]}), stranger)
    frame, problems = ledger.read()
    assert set(frame["trial_id"]) == {ident(1)}
    assert len(problems) == 5
    for path in (cut, middle, empty, foreign, stranger):
        assert sum(str(path) in line and "\n" not in line for line in problems) == 1, path


def test_status_and_membership_without_opening_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member("a"))
    write(ledger, 2, member("a"), "pruned")
    write(ledger, 3, member("a"), "failed")
    write(ledger, 4, member("a", "confirm"))
    write(ledger, 2, member("b"), "failed")
    monkeypatch.setattr(pq, "ParquetFile", None)
    assert ledger.membership("a", "search") == {ident(1): "finished", ident(2): "pruned", ident(3): "failed"}
    assert ledger.membership("a", "confirm") == {ident(4): "finished"}
    assert ledger.membership("A", "search") == {}
    listing = ledger.listing()
    assert listing.finished() == {ident(1), ident(4)}
    assert [listing.status(ident(name)) for name in (1, 2, 3, 9)] == ["finished", "pruned", "failed", None]
    # Finished is finished for everybody; pruned and failed only where it happened.
    assert [listing.status(ident(name), "b") for name in (1, 2, 3)] == ["finished", "failed", None]


def test_versions_of_a_sweep_are_kept_apart(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member(sweep_id="a" * 64), "pruned")
    write(ledger, 1, member(sweep_id="b" * 64), "failed")
    assert ledger.membership("gamma", "search", "a" * 64) == {ident(1): "pruned"}
    assert ledger.membership("gamma", "search", "b" * 64) == {ident(1): "failed"}
    assert ledger.status(ident(1), "gamma", "c" * 64) is None
    assert ledger.membership("gamma", "search") == {ident(1): "pruned"}


@pytest.mark.parametrize("sweep", ["a/b", "..", "A", "ä ö.1", "x" * 300, "", "con*?\n", "<b>"])
def test_any_sweep_name_makes_a_file_of_its_own(tmp_path: Path, sweep: str):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member("a"))
    path = write(ledger, 2, member(sweep))
    assert path.parent == ledger.folder
    assert len(path.name) < 255
    assert ledger.membership(sweep, "search") == {ident(2): "finished"}
    assert ledger.membership("a", "search") == {ident(1): "finished"}
    assert set(ledger.read(sweep).frame["sweep"]) == {sweep}


def test_a_new_outcome_takes_the_place_of_the_old(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, status="failed")
    write(ledger, 1)
    assert [entry.status for entry in ledger.listing().entries] == ["finished"]
    write(ledger, 1, device_seconds=99.0)
    frame = ledger.read().frame
    assert len(frame) == 2
    assert set(frame["device_seconds"]) == {99.0}


def test_a_kill_between_writing_and_clearing_leaves_the_more_final_outcome(tmp_path: Path, monkeypatch: Any):
    ledger = Ledger(tmp_path)
    write(ledger, 1, status="failed")
    monkeypatch.setattr(Ledger, "_discard", lambda *_: 0)
    write(ledger, 1)
    assert len(list(ledger.folder.iterdir())) == 2
    assert ledger.status(ident(1)) == "finished"
    assert ledger.membership("gamma", "search") == {ident(1): "finished"}
    assert set(ledger.read().frame["status"]) == {"finished"}


def test_adopting_copies_the_rows_and_runs_nothing(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member("a", draw=3, swept={"lr": 0.1}))
    path = ledger.adopt(ident(1), member("b", "confirm", configuration="plain", swept={"t": 0.5}), objective=0.5)
    frame = ledger.read("b").frame
    assert path is not None
    assert len(frame) == 2
    first = frame.iloc[0]
    assert (first["stage"], first["configuration"], first["role"]) == ("confirm", "plain", "baseline")
    assert (first["reused"], first["objective"], first["device_seconds"], first["param.t"]) == (True, 0.5, 12.5, 0.5)
    assert first["finished_at"] == pd.Timestamp(NOON)
    assert pd.isna(first["draw"])
    assert "param.lr" not in frame
    original = ledger.read("a").frame
    assert set(original["reused"]) == {False}
    assert pq.read_schema(path).field("value").metadata[b"doc"] == SCHEMA.field("value").metadata[b"doc"]
    before = path.stat().st_mtime_ns
    assert ledger.adopt(ident(1), member("b", "confirm", configuration="plain")) == path
    assert path.stat().st_mtime_ns == before


def test_only_a_finished_trial_is_adopted(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member("a"), "pruned")
    assert ledger.adopt(ident(1), member("b")) is None
    assert ledger.adopt(ident(2), member("b")) is None
    broken = write(ledger, 3, member("a"))
    broken.write_bytes(b"")
    assert ledger.adopt(ident(3), member("b")) is None
    assert ledger.membership("b", "search") == {}


def test_remove(tmp_path: Path):
    ledger = Ledger(tmp_path)
    write(ledger, 1, member("a"), "failed")
    write(ledger, 1, member("b"))
    write(ledger, 2, member("a"))
    assert ledger.remove(ident(1), status="failed") == 1
    assert ledger.status(ident(1)) == "finished"
    assert ledger.remove(ident(1), sweep="a") == 0
    assert ledger.remove(ident(1)) == 1
    assert ledger.remove(ident(1)) == 0
    assert ledger.status(ident(2)) == "finished"


def test_write_refuses_what_is_not_one_trial(tmp_path: Path):
    ledger = Ledger(tmp_path)
    with pytest.raises(ValueError, match="schema"):
        ledger.write(pa.table({"x": [1]}))
    two = pa.concat_tables([rows_table(facts(1), [score()]), rows_table(facts(2), [score()])])
    with pytest.raises(ValueError, match="exactly one trial"):
        ledger.write(two)
    assert ledger.listing().entries == ()


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="no space"):
        write(Ledger(tmp_path), 1)
    assert list((tmp_path / "ledger").iterdir()) == []


WRITER = """
import os, sys, time
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from bench.results import files, ledger
from bench.results.schema import SCHEMA

out, template, hang, *names = sys.argv[1:]
rows = pq.read_table(template)
if hang == "hang":
    files.os.fsync = lambda _: (Path(out, "stopped").touch(), time.sleep(60))
for name in names:
    table = rows.set_column(1, SCHEMA.field(1), pa.array([name] * len(rows), pa.string()))
    ledger.Ledger(Path(out)).write(pa.table(table.columns, schema=SCHEMA))
"""


def start_writer(tmp_path: Path, hang: str, names: list[str]) -> subprocess.Popen[bytes]:
    """A process of its own that writes one trial per name; with "hang" it stops for good before the rename."""
    template = tmp_path / "template"
    pq.write_table(rows_table(facts(), [score(), confusion()]), template)
    return subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(template), hang, *names])


def test_a_killed_write_leaves_nothing_readable(tmp_path: Path):
    process = start_writer(tmp_path, "hang", ["killed"])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "stopped").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    ledger = Ledger(tmp_path)
    assert len(list(ledger.folder.iterdir())) == 1  # the partial file is there,
    assert ledger.listing().entries == ()  # and nobody sees it
    assert ledger.read().problems == []
    write(ledger, 1)
    assert len(pd.read_parquet(ledger.folder)) == 2


def test_two_processes_write_at_once_while_a_third_reads(tmp_path: Path):
    names = [[f"{who}{number}" for number in range(15)] + [f"both{number}" for number in range(15)] for who in "xy"]
    writers = [start_writer(tmp_path, "go", each) for each in names]
    ledger = Ledger(tmp_path)
    while any(writer.poll() is None for writer in writers):
        time.sleep(0.02)
        frame, problems = ledger.read()
        assert problems == []
        assert (frame.groupby("trial_id").size() == 2).all()
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(ledger.membership("gamma", "search")) == 45
    assert len(ledger.read().frame) == 90
    assert not list(ledger.folder.glob(".*"))


def test_twenty_thousand_files_are_listed_within_a_second(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.folder.mkdir()
    for number in range(20_000):
        (ledger.folder / f"{ident(number)}.gamma.v1.search.-.finished.parquet").touch()
    start = time.perf_counter()
    listing = ledger.listing()
    assert all(listing.status(ident(number)) == "finished" for number in range(1000))
    assert len(listing.membership("gamma", "search")) == 20_000
    assert time.perf_counter() - start < 2  # measured 0.3 s; room for a busy machine
