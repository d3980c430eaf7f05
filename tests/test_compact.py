"""Compaction at any moment: nothing lost, nothing counted twice, and the folder reads as before."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from bench.results import compact as compaction
from bench.results import files, listing
from bench.results.compact import Compaction
from bench.results.ledger import Ledger
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table

PAGE = (Path(__file__).parents[1] / "docs" / "LEDGER.md").read_text()


def ident(name: object) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def table(name: object, sweep: str = "gamma", status: Any = "finished", value: float = 0.7, **more: Any) -> Any:
    """A trial of five rows: val and test of two datasets, and a confusion matrix."""
    membership = Membership(
        sweep=sweep,
        sweep_id=more.pop("sweep_id", "v1"),
        stage=more.pop("stage", "search"),
        configuration=more.pop("configuration", "simclr"),
        swept={"lr": value, "flip": True},
    )
    facts = TrialFacts(
        trial_id=ident(name),
        membership=membership,
        configuration_id="c",
        method="simclr",
        encoder="small",
        seed=0,
        status=status,
        config={"name": str(name)},
        objective=value,
        error="ValueError: no" if status == "failed" else None,
    )
    at: Any = {"protocol": "linear", "metric": "top1", "headline": True}
    rows = [
        Measurement(dataset=dataset, split=split, value=value, **at)
        for dataset in ("leaves", "wings")
        for split in ("val", "test")
    ]
    at |= {"metric": "confusion", "headline": False}
    rows += [Measurement(dataset="wings", split="test", value=None, confusion=[1, 2, 3, 4], classes=["a", "b"], **at)]
    return rows_table(facts, rows if status == "finished" else [])


def fill(out: Path, trials: int = 6) -> Ledger:
    """Trials of two sweeps, one pruned, one failed."""
    ledger = Ledger(out)
    for name in range(trials):
        ledger.write(table(name, "gamma" if name % 2 else "Jigsaw 2", value=0.1 * name))
    ledger.write(table("pruned", status="pruned"))
    ledger.write(table("failed", status="failed"))
    return ledger


def compact(ledger: Ledger) -> Compaction:
    return compaction.compact(ledger, settle=0.0)


def content(ledger: Ledger) -> pd.DataFrame:
    """All rows, in an order that does not depend on where they lie."""
    frame, problems = ledger.read()
    assert problems == []
    keys = ["sweep", "trial_id", "stage", "configuration", "dataset", "split", "metric"]
    frame[["config", "versions"]] = frame[["config", "versions"]].astype(str)
    return frame.sort_values(keys).reset_index(drop=True)


def names(ledger: Ledger) -> list[str]:
    return sorted(path.name for path in ledger.folder.iterdir())


def test_what_is_read_stays_the_same(tmp_path: Path):
    ledger = fill(tmp_path)
    before, statuses = content(ledger), ledger.membership("gamma", "search")
    depths: Any = ("first", "scores")
    shallow = {depth: ledger.read(depth=depth).frame for depth in depths}
    one = ledger.read("Jigsaw 2", ["value", "sweep"], depth="scores").frame
    done = compact(ledger)
    assert (done.records, done.cleared, done.problems) == (8, 8, [])
    assert names(ledger) == [done.path.name]  # type: ignore[union-attr]
    pd.testing.assert_frame_equal(content(ledger), before)
    for depth in depths:
        pd.testing.assert_frame_equal(ledger.read(depth=depth).frame, shallow[depth], check_categorical=False)
    pd.testing.assert_frame_equal(ledger.read("Jigsaw 2", ["value", "sweep"], depth="scores").frame, one)
    assert ledger.membership("gamma", "search") == statuses
    assert ledger.status(ident("failed"), "gamma") == "failed"
    assert ledger.recorded(ident("failed"), "error") == "ValueError: no"
    assert ledger.recorded(ident(3), "objective") == pytest.approx(0.3)


def test_depths_hold_what_they_say(tmp_path: Path):
    ledger = fill(tmp_path, trials=2)
    for _ in range(2):
        first, scores = ledger.read(depth="first").frame, ledger.read(depth="scores").frame
        assert len(first) == 4  # one of each trial
        assert scores.groupby("trial_id").size().sort_values().tolist() == [1, 1, 3, 3]
        assert set(scores["metric"].dropna()) == {"top1", "objective"}
        compact(ledger)


def test_an_empty_ledger_and_one_that_is_compact_are_left(tmp_path: Path):
    assert compact(Ledger(tmp_path)) == Compaction()
    assert not (tmp_path / "ledger").exists()
    ledger = fill(tmp_path)
    compact(ledger)
    there = names(ledger)
    assert compact(ledger) == Compaction()
    assert names(ledger) == there


def test_few_new_files_do_not_rewrite_a_large_one(tmp_path: Path):
    ledger = fill(tmp_path, trials=10)
    first = compact(ledger).path
    ledger.write(table("new"))
    second = compact(ledger)
    assert (second.records, second.cleared) == (1, 1)
    assert first is not None
    assert first.exists()
    for name in range(20, 26):
        ledger.write(table(name))
    third = compact(ledger)
    assert (third.records, third.cleared) == (19, 8)  # 6 new, then 1, then 12: each at most twice what joins it
    assert names(ledger) == [third.path.name]  # type: ignore[union-attr]
    assert len(ledger.listing().entries) == 19


def test_a_new_record_takes_the_place_of_a_compacted_one(tmp_path: Path):
    ledger = fill(tmp_path)
    compact(ledger)
    ledger.write(table(1, value=0.9))
    ledger.write(table("failed"))  # finished at last
    frame = ledger.read().frame
    assert set(frame.loc[frame["trial_id"] == ident(1), "objective"]) == {0.9}
    assert len(frame) == 7 * 5 + 1
    assert ledger.status(ident("failed")) == "finished"
    done = compact(ledger)
    assert (done.records, len(names(ledger))) == (8, 1)
    assert len(pd.read_parquet(ledger.folder)) == len(frame)


def test_adopting_renewing_and_removing_what_is_compacted(tmp_path: Path):
    ledger = fill(tmp_path)
    path = compact(ledger).path
    place = Membership(sweep="other", sweep_id="v1", stage="confirm", configuration="plain")
    adopted = ledger.adopt(ident(1), place)
    assert adopted is not None
    assert ledger.adopt(ident(1), place) == adopted
    assert ledger.read("other").frame["reused"].all()
    assert (
        ledger.adopt(ident(1), Membership(sweep="gamma", sweep_id="v1", stage="search", configuration="simclr")) == path
    )
    assert ledger.remove(ident(3)) == 1
    assert ledger.remove(ident(3)) == 0
    assert ledger.remove(ident("failed"), sweep="gamma", status="failed") == 1
    for _ in range(2):
        assert [ledger.status(ident(name)) for name in (1, 3, "failed")] == ["finished", None, None]
        assert ident(3) not in set(ledger.read().frame["trial_id"])
        compact(ledger)
    ledger.write(table(3))
    assert ledger.status(ident(3)) == "finished"
    assert len(ledger.read("gamma").frame.query(f"trial_id == '{ident(3)}'")) == 5


def test_renewing_makes_an_earlier_version_the_newest(tmp_path: Path):
    ledger = fill(tmp_path)
    compact(ledger)
    ledger.write(table(50, sweep_id="v2"))
    ledger.renew("gamma", "v1")
    recorded = ledger.read("gamma").frame.groupby("sweep_id")["recorded_at"].max()
    assert recorded["v1"] > recorded["v2"]
    assert len(ledger.read("gamma").frame) == 4 * 5 + 2


def test_files_of_before_are_read_and_merged(tmp_path: Path):
    ledger = Ledger(tmp_path)
    path = ledger.write(table(1))
    path.rename(path.with_name(re.sub(r"\.0-\w+\.parquet$", ".parquet", path.name)))
    ledger.write(table(2))
    before = content(ledger)
    assert len(before) == 10
    assert compact(ledger).records == 2
    pd.testing.assert_frame_equal(content(ledger), before)
    ledger.write(table(1, value=0.2))
    assert set(ledger.read().frame["objective"]) == {0.2, 0.7}


def test_damaged_files_stay_where_they_are(tmp_path: Path):
    ledger = fill(tmp_path)
    cut, gone = ledger.write(table("cut")), ledger.write(table("empty"))
    cut.write_bytes(cut.read_bytes()[:-50])
    gone.write_bytes(b"")
    stranger = ledger.folder / "notes.parquet"
    stranger.write_bytes(b"mine")
    for records in (8, 0):
        done = compact(ledger)
        assert (done.records, len(done.problems)) == (records, 2)
        for path in (cut, gone):
            assert sum(str(path) in line and "\n" not in line for line in done.problems) == 1
        assert all(path.exists() for path in (cut, gone, stranger))
    assert len(ledger.read().frame) == 6 * 5 + 2
    assert len(ledger.read().problems) == 3


def test_of_a_damaged_compacted_file_only_the_damaged_part_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compaction, "CHUNK", 2)
    ledger = fill(tmp_path)
    path = compact(ledger).path
    assert path is not None
    column = pq.read_metadata(path).row_group(0).column(1)  # the trials' ids
    start, size = column.dictionary_page_offset, column.total_compressed_size
    data = bytearray(path.read_bytes())
    data[start : start + size] = bytes(byte ^ 0xFF for byte in data[start : start + size])
    path.write_bytes(data)
    frame, problems = ledger.read()
    assert len(set(frame["trial_id"])) == 6
    assert len(problems) == 1
    assert "2 records" in problems[0]
    ledger.write(table("new"))
    compact(ledger)
    assert path.exists()  # for its readable records may be elsewhere by now, but the others only here
    assert len(set(ledger.read().frame["trial_id"])) == 7
    path.write_bytes(data[:-100])
    compact(ledger)
    assert path.exists()
    assert any(str(path) in line for line in ledger.read().problems)


def test_a_file_that_does_not_read_back_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = fill(tmp_path)
    verify, before = compaction._verify, content(ledger)

    def damaged(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[200] ^= 0xFF
        path.write_bytes(data)
        verify(path)

    monkeypatch.setattr(compaction, "_verify", damaged)
    with pytest.raises(compaction.BadData, match="does not read back"):
        compact(ledger)
    pd.testing.assert_frame_equal(content(ledger), before)


@pytest.mark.parametrize("change", ["remove", "replace", "compact"])
def test_what_changes_while_a_compaction_has_read_it_stays_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    ledger = fill(tmp_path)
    write = compaction.write_compacted
    changes: dict[str, Callable[[], Any]] = {
        "remove": lambda: ledger.remove(ident(1)),
        "replace": lambda: ledger.write(table(1, value=0.9)),
        "compact": lambda: compact(ledger),
    }

    def late(path: Path, chunks: Any, verify: Any) -> None:
        chunks = list(chunks)
        monkeypatch.setattr(compaction, "write_compacted", write)
        changes[change]()
        write(path, chunks, verify)

    monkeypatch.setattr(compaction, "write_compacted", late)
    compact(ledger)
    for _ in range(2):
        frame = ledger.read().frame
        assert len(frame) == 5 * 5 + 2 + (0 if change == "remove" else 5)
        objective = set(frame.loc[frame["trial_id"] == ident(1), "objective"])
        assert objective == {"remove": set(), "replace": {0.9}, "compact": {0.1}}[change]
        compact(ledger)
    assert len(names(ledger)) == 1


def test_a_listing_is_read_again_when_something_took_the_place_of_others(tmp_path: Path, monkeypatch: Any):
    """The worst listing of a folder: before the new file came, after its sources had gone."""
    ledger = fill(tmp_path)
    scan, calls = listing._scan, []

    def torn(folder: Path, prefix: str) -> Iterator[str]:
        calls.append(prefix)
        if len(calls) == 1:
            names = [name for name in scan(folder, prefix) if "jigsaw" in name]
            compact(ledger)
            return iter(names)
        return scan(folder, prefix)

    monkeypatch.setattr(listing, "_scan", torn)
    assert len(ledger.listing().entries) == 8


def test_rows_whose_files_go_while_they_are_read_are_found_again(tmp_path: Path, monkeypatch: Any):
    ledger = fill(tmp_path)
    before, read = content(ledger), files.read_files

    def late(*arguments: Any, **more: Any) -> Any:
        compact(ledger)
        return read(*arguments, **more)

    monkeypatch.setattr(files, "read_files", late)
    pd.testing.assert_frame_equal(content(ledger), before)


def test_copies_stay_while_the_compacted_file_is_damaged(tmp_path: Path):
    ledger = fill(tmp_path)
    sources = {path: path.read_bytes() for path in ledger.folder.iterdir()}
    path = compact(ledger).path
    assert path is not None
    for source, data in sources.items():
        source.write_bytes(data)
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF
    path.write_bytes(data)
    done = compact(ledger)
    assert (done.cleared, len(done.problems)) == (0, 1)
    path.unlink()
    assert len(ledger.read().frame) == 6 * 5 + 2


def test_half_written_files_are_swept_once_they_are_old(tmp_path: Path):
    ledger = fill(tmp_path)
    old, fresh = (ledger.folder / f".{name}.partial" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_bytes(b"PAR1")
    os.utime(old, (0, 0))
    compact(ledger)
    assert (old.exists(), fresh.exists()) == (False, True)
    assert len(ledger.listing().entries) == 8


def test_other_readers_see_one_table(tmp_path: Path):
    """The page's lines, as they stand, on the worst folder: copies, a replaced record, several compacted files."""
    ledger = fill(tmp_path)
    sources = {path.name: path.read_bytes() for path in ledger.folder.iterdir()}
    compact(ledger)
    assert len(pd.read_parquet(ledger.folder)) == len(ledger.read().frame) == 6 * 5 + 2
    for name, data in sources.items():  # a kill before they were cleared away
        (ledger.folder / name).write_bytes(data)
    ledger.write(table(1, value=0.9))
    ledger.write(table("failed"))
    expected = ledger.read().frame
    assert len(expected) == 7 * 5 + 1
    (view,) = [block for block in re.findall(r"```sql\n(.*?)```", PAGE, re.S) if "CREATE VIEW" in block]
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "read_parquet" in block]
    with duckdb.connect() as connection:
        connection.execute(view.replace("results/ledger", str(ledger.folder)))
        rows = connection.execute("SELECT count(*), sum(objective), count(confusion) FROM ledger").fetchone()
        assert connection.execute("SELECT max(swept_numbers['lr']) FROM ledger").fetchone() == (0.9,)
    space: dict[str, Any] = {}
    exec(code.replace("results/ledger", str(ledger.folder)), space)
    frame = space["ledger"]
    wanted = (len(expected), pytest.approx(expected["objective"].sum()), expected["confusion"].notna().sum())
    assert rows == wanted
    assert (len(frame), frame["objective"].sum(), frame["confusion"].notna().sum()) == wanted


KILLED = """
import os, signal, sys
from pathlib import Path
from bench.results import compact, files
from bench.results.ledger import Ledger

where, number = sys.argv[2], int(sys.argv[3])
calls = 0

def deadly(function):
    def call(*arguments, **more):
        global calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **more)
    return call

if where == "write":
    files.pq.ParquetWriter.write_table = deadly(files.pq.ParquetWriter.write_table)
elif where == "fsync":
    os.fsync = deadly(os.fsync)
elif where == "rename":
    Path.replace = deadly(Path.replace)
else:
    Path.unlink = deadly(Path.unlink)
compact.compact(Ledger(Path(sys.argv[1])), settle=0.0)
"""


@pytest.mark.parametrize(
    ("where", "number"),
    [("write", 2), ("fsync", 1), ("rename", 1), ("fsync", 2), ("unlink", 2), ("unlink", 5), ("unlink", 9)],
)
def test_killed_at_any_point(tmp_path: Path, where: str, number: int):
    ledger = fill(tmp_path)
    before = content(ledger)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), where, str(number)], check=False)
    assert done.returncode == -9
    pd.testing.assert_frame_equal(content(ledger), before)
    compact(ledger)
    pd.testing.assert_frame_equal(content(ledger), before)
    assert len([name for name in names(ledger) if not name.startswith(".")]) == 1


WORKER = """
import sys, time
from pathlib import Path
import pyarrow as pa, pyarrow.parquet as pq
from bench.results.compact import compact
from bench.results.ledger import Ledger
from bench.results.schema import SCHEMA

role, out, template, stop = sys.argv[1], *map(Path, sys.argv[2:])
ledger = Ledger(out)
rows = pq.read_table(template)
(out / f"ready-{role}").touch()
if role.startswith("writer"):
    for number in range(60):
        name = f"{role}n{number}" if number % 3 else f"both{number}"
        named = rows.set_column(1, SCHEMA.field(1), pa.array([name] * len(rows), pa.string()))
        ledger.write(pa.table(named.columns, schema=SCHEMA))
        if number % 10 == 9:
            ledger.remove(f"{role}n{number - 1}")
else:
    while not stop.exists():
        assert compact(ledger, settle=0.1).problems == []
"""


def test_writers_compactors_and_readers_at_once(tmp_path: Path):
    template, stop = tmp_path / "template", tmp_path / "stop"
    pq.write_table(table(0), template)

    def start(role: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, role, str(tmp_path), str(template), str(stop)])

    ledger = Ledger(tmp_path)
    compactors = [start(f"compactor{number}") for number in range(2)]
    writers = [start(f"writer{number}") for number in range(2)]
    seen: set[str] = set()
    try:
        while any(writer.poll() is None for writer in writers):
            frame, problems = ledger.read(columns=["trial_id"])
            assert problems == []
            assert (frame.groupby("trial_id").size() == 5).all()
            now = set(frame["trial_id"])
            lost = {name for name in seen - now if not name.endswith("8")}  # those that are removed end so
            assert lost == set()
            seen = now
            time.sleep(0.01)
    finally:
        stop.touch()
        codes = [process.wait(60) for process in (*writers, *compactors)]
    assert codes == [0, 0, 0, 0]
    alone = {f"writer{who}n{number}" for who in (0, 1) for number in range(60) if number % 3}
    removed = {f"writer{who}n{number}" for who in (0, 1) for number in range(8, 60, 10) if number % 3}
    expected = alone - removed | {f"both{number}" for number in range(0, 60, 3)}
    for _ in range(2):
        assert {entry.trial_id for entry in ledger.listing().entries} == expected
        frame = ledger.read().frame
        assert set(frame["trial_id"]) == expected
        assert len(frame) == 5 * len(expected)
        compact(ledger)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from bench.cli import app

    ledger = fill(tmp_path)
    cut = ledger.write(table("cut"))
    cut.write_bytes(b"")

    def run(*arguments: str) -> str:
        app([*arguments], standalone_mode=False)
        return capsys.readouterr().out

    before = run("report", "--out", str(tmp_path))
    shown = run("compact", "--out", str(tmp_path))
    assert "8 records are in" in shown
    assert "8 files cleared away" in shown
    assert f"left as it is: {cut}" in shown
    assert "nothing to merge" in run("compact", "--out", str(tmp_path))
    assert run("report", "--out", str(tmp_path)) == before


def test_records_stay_in_order_whatever_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(compaction, "CHUNK", 3)
    monkeypatch.setattr(compaction, "LEAST", 2)
    ledger = fill(tmp_path, trials=11)
    before = ledger.read().frame
    path = compact(ledger).path
    assert path is not None
    assert pq.read_metadata(path).num_row_groups > 9
    after = ledger.read().frame
    assert after["trial_id"].equals(before["trial_id"])
    for _, trials in after.groupby("sweep")["trial_id"]:
        assert trials.is_monotonic_increasing
