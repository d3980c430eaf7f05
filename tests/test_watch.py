"""What drivers tell of themselves on disk, and `bench watch`, which reads it."""

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import live, watch
from bench.cli import app
from bench.errors import BadInput, UnknownName
from bench.live import MOST_ROWS, Row, Snapshot, telling
from bench.panel import panel
from bench.progress import Board
from bench.results.ledger import Ledger
from bench.results.schema import Measurement, Membership, TrialFacts, rows_table
from bench.watch import SILENT, Watcher, choose, others, render

ROW = Row(
    label="simclr, draw 3", epoch=2, epochs=12, loss=5.172, images_per_second=471.4, seconds_left=36.1, settings="t"
)


def told(sweep: str = "gamma", **over: Any) -> Snapshot:
    """A driver's word: 3 of 15 trials have ended, one runs."""
    facts: dict[str, Any] = {"sweep_id": "ab" * 32, "title": "Does it help?", "host": "node1", "total": 15}
    facts |= {"counts": {"finished": 2, "pruned": 1}, "best": (0.573, "simclr, draw 1"), "running": 1, "rows": (ROW,)}
    return Snapshot(sweep=sweep, **(facts | over))


def tell(out: Path, snapshot: Snapshot, letters: str = "abc123") -> Path:
    """Write a driver's word as the driver does."""
    path = out / "live" / f"{snapshot.sweep}-{snapshot.sweep_id[:12]}.{letters}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(snapshot.model_dump_json())
    return path


def record(out: Path, snapshot: Snapshot, begun: float) -> None:
    """The sweep's definition, as a driver that began at `begun` kept it."""
    path = out / "sweeps" / f"{snapshot.sweep}-{snapshot.sweep_id[:12]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"name": snapshot.sweep, "sweep_id": snapshot.sweep_id, "title": snapshot.title}))
    os.utime(path, (begun, begun))


def shown(thing: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


class Clock:
    """A watcher's clock, which goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def until(holds: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "waited for nothing"
        time.sleep(0.02)
    return found


def words(out: Path) -> list[Snapshot]:
    return [Snapshot.model_validate_json(path.read_text()) for path in sorted(live.live_files(out / "live"))]


# What a driver tells ---------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "RENEW", 0.02)
    monkeypatch.setattr(live, "BEAT", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_driver_renews_its_word_though_nothing_happens(tmp_path: Path) -> None:
    with telling(tmp_path, told):
        first = until(lambda: words(tmp_path) if (tmp_path / "live").exists() else None)[0]
        assert first == told(beat=first.beat, host=first.host)
        until(lambda: words(tmp_path)[0].beat > first.beat + 2)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("state", "last"), [("running", "interrupted"), ("done", "done")])
def test_the_last_word_says_how_it_ended(tmp_path: Path, state: str, last: str) -> None:
    with telling(tmp_path, lambda: told(state=state)):
        pass
    assert [word.state for word in words(tmp_path)] == [last]
    assert [path.suffix for path in (tmp_path / "live").iterdir()] == [".json"]


@pytest.mark.usefixtures("quick")
def test_an_error_in_the_run_is_an_interruption_and_passes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), telling(tmp_path, told):
        raise KeyboardInterrupt
    assert [word.state for word in words(tmp_path)] == ["interrupted"]


@pytest.mark.usefixtures("quick")
def test_words_of_earlier_drivers_go_and_those_of_living_ones_come_back(tmp_path: Path) -> None:
    tell(tmp_path, told(), "killed")
    other = tell(tmp_path, told("other"))
    with telling(tmp_path, told):
        until(lambda: len(words(tmp_path)) == 2)
        with telling(tmp_path, lambda: told(elapsed=1.0)):
            until(lambda: len(words(tmp_path)) == 3)
            assert other.exists()
            assert not [path for path in live.live_files(tmp_path / "live") if "killed" in path.name]


@pytest.mark.usefixtures("quick")
def test_a_storage_that_fails_disturbs_no_driver(tmp_path: Path) -> None:
    (tmp_path / "live").write_text("a file where the folder would be")
    with telling(tmp_path, told):
        time.sleep(0.1)
    assert (tmp_path / "live").read_text() == "a file where the folder would be"


def job(draw: int, **over: Any) -> Any:
    trial = SimpleNamespace(seed=0, training=SimpleNamespace(epochs=4))
    facts = {"configuration": "simclr", "stage": "search", "draw": draw, "trial": trial, "role": None}
    return SimpleNamespace(**(facts | {"swept": {"temperature": 0.25}} | over))


def board() -> Board:
    sweep = SimpleNamespace(name="gamma", title="q?", candidates={"simclr": 0}, draws={"simclr": 9}.get)
    sweep.confirm = SimpleNamespace(seeds=(0, 1), baselines=(), controls=("random_init",))
    return Board(SimpleNamespace(sweep=sweep, sweep_id="ab" * 32))  # type: ignore[arg-type]


def test_a_board_is_told_as_it_is_shown() -> None:
    told_of = board()
    told_of("start", "a", {"job": job(0)})
    told_of("start", "b", {"job": job(1)})
    told_of("epoch", "a", {"epoch": 1, "loss": math.nan, "images_per_second": 100.0})
    told_of("finished", "b", {"job": job(1), "objective": 0.5})
    snapshot = told_of.snapshot()
    assert (snapshot.total, snapshot.ended, snapshot.running, snapshot.best) == (13, 1, 1, (0.5, "simclr, draw 1"))
    assert snapshot.rows == (
        Row(label="simclr, draw 0", epoch=1, epochs=4, images_per_second=100.0, settings="temperature=0.25"),
    )
    assert Snapshot.model_validate_json(snapshot.model_dump_json()) == snapshot
    assert shown(told_of.render()) == shown(panel(snapshot))
    told_of.over = True
    assert told_of.snapshot().state == "done"


def test_a_thousand_trials_at_a_time_are_a_small_file() -> None:
    told_of = board()
    for number in range(1000):
        told_of("start", str(number), {"job": job(number)})
    snapshot = told_of.snapshot()
    assert (snapshot.running, len(snapshot.rows)) == (1000, MOST_ROWS)
    assert len(snapshot.model_dump_json()) < 20_000
    assert f"and {1000 - MOST_ROWS} more" in shown(panel(snapshot))


@pytest.mark.parametrize("width", [80, 120])
def test_only_the_configuration_is_cut_in_a_narrow_terminal(width: int) -> None:
    text = "gamma.low=0.325, gamma.high=2.86, temperature=0.285, crop.low=0.3, crop.high=0.9, pretrain.lr=0.00123"
    screen = shown(panel(told(rows=(ROW.model_copy(update={"settings": text}),))), width)
    row = next(line for line in screen.splitlines() if "draw 3" in line and "2/12" in line)
    assert row.split("  ")[0].strip() == "simclr, draw 3"
    assert all(part in row for part in ("2/12", "5.172", "471", "0:36", "gamma.low=0.325"))
    assert row.rstrip().endswith("…")
    assert max(map(len, screen.splitlines())) <= width


# What a watcher makes of it --------------------------------------------------------------------------


def test_a_driver_is_silent_when_its_word_is_not_renewed(tmp_path: Path) -> None:
    clock = Clock()
    watcher = Watcher(tmp_path, clock)
    for beat in range(3):
        tell(tmp_path, told(beat=beat))
        assert watcher.look()[0].standing == "running"
        clock.now += SILENT - 1
    clock.now += 2
    (view,) = watcher.look()
    assert view.standing == "silent"
    assert "the driver on node1 has said nothing for 11 s" in shown(render(view))
    tell(tmp_path, told(beat=9))
    assert watcher.look()[0].standing == "running"


def test_no_clock_of_another_machine_is_asked(tmp_path: Path) -> None:
    clock = Clock()
    watcher = Watcher(tmp_path, clock)
    for beat, when in enumerate((0, 4e9, 1e6)):
        path = tell(tmp_path, told(beat=beat))
        os.utime(path, (when, when))
        assert watcher.look()[0].standing == "running"
        clock.now += SILENT - 1


def test_settling_waits_until_drivers_are_known_to_live_or_not(tmp_path: Path) -> None:
    clock = Clock()
    watcher = Watcher(tmp_path, clock)
    tell(tmp_path, told("dead"))
    assert [view.standing for view in watcher.settled(sleep=clock.sleep)] == ["silent"]
    assert SILENT <= clock.now < SILENT + 1

    def live_on(seconds: float) -> None:
        clock.now += seconds
        tell(tmp_path, told("alive", beat=int(clock.now)))

    tell(tmp_path, told("alive"))
    again = Watcher(tmp_path, clock)
    assert [view.sweep for view in again.settled(sleep=live_on)] == ["alive", "dead"]
    began = clock.now
    tell(tmp_path, told("ended", state="done"))
    assert Watcher(tmp_path, clock).settled("ended", sleep=clock.sleep)
    assert clock.now == began


def test_a_file_that_goes_makes_way_for_the_next_driver(tmp_path: Path) -> None:
    clock = Clock()
    watcher = Watcher(tmp_path, clock)
    path = tell(tmp_path, told())
    watcher.look()
    path.unlink()
    assert [view.standing for view in watcher.look()] == ["running"]
    clock.now += SILENT
    assert [view.standing for view in watcher.look()] == ["silent"]
    tell(tmp_path, told(elapsed=1.0), "second")
    (view,) = watcher.look()
    assert (view.standing, [each.elapsed for each in view.snapshots]) == ("running", [1.0])


@pytest.mark.parametrize(
    ("states", "standing"),
    [
        (("running", "done"), "running"),
        (("interrupted", "done"), "done"),
        (("interrupted", "running"), "running"),
        (("interrupted", "interrupted"), "interrupted"),
    ],
)
def test_a_sweep_of_two_drivers_is_done_when_one_is_and_none_goes_on(
    tmp_path: Path, states: tuple[Any, Any], standing: str
) -> None:
    for letters, state in zip(("a", "b"), states, strict=True):
        tell(tmp_path, told(state=state), letters)
    assert Watcher(tmp_path).look()[0].standing == standing


def test_two_drivers_of_one_sweep_are_both_shown(tmp_path: Path) -> None:
    tell(tmp_path, told(), "a")
    tell(tmp_path, told(host="node2"), "b")
    (view,) = Watcher(tmp_path).look()
    screen = shown(render(view))
    assert "running, 2 drivers" in screen
    assert [line.split()[-1] for line in screen.splitlines() if line.startswith("driver on")] == ["node1", "node2"]


def test_the_newest_that_runs_is_shown_and_others_are_named(tmp_path: Path) -> None:
    for begun, (name, state) in enumerate({"old": "running", "new": "running", "last": "done"}.items()):
        tell(tmp_path, told(name, state=state))
        record(tmp_path, told(name), begun)
    views = Watcher(tmp_path).look()
    assert [view.sweep for view in views] == ["new", "old", "last"]
    view = choose(tmp_path, views, None)
    assert view.sweep == "new"
    assert "also running here, see --sweep: old" in shown(render(view, others(views, view)))
    assert choose(tmp_path, views, "last").standing == "done"


def test_a_wrong_name_gets_the_nearest(tmp_path: Path) -> None:
    tell(tmp_path, told("simclr_gamma"))
    with pytest.raises(UnknownName, match="did you mean 'simclr_gamma'"):
        choose(tmp_path, Watcher(tmp_path).look(), "simclr_gama")


def test_an_empty_folder_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no sweep has run here; `bench run --sweep"):
        choose(tmp_path, [], None)


def add_rows(out: Path, sweep: str, sweep_id: str, statuses: list[str]) -> None:
    """Ended draws of a sweep in the ledger."""
    for number, status in enumerate(statuses):
        member = Membership(sweep=sweep, sweep_id=sweep_id, stage="search", configuration="simclr", draw=number)
        trial = f"{number}".rjust(64, "e")
        facts = TrialFacts(
            trial_id=trial,
            pretrain_id=trial,
            membership=member,
            configuration_id=trial,
            method="simclr",
            encoder="small",
            seed=0,
            status=status,  # type: ignore[arg-type]
            config={"objective": "linear"},
            error="lost" if status == "failed" else None,
            objective=0.5,
        )
        rows = [Measurement(dataset="leaves", protocol="linear", split="test", metric="top1", headline=True, value=0.5)]
        Ledger(out).write(rows_table(facts, rows if status == "finished" else []))


def test_without_a_drivers_word_the_ledger_is_counted(tmp_path: Path) -> None:
    record(tmp_path, told(), 0)
    add_rows(tmp_path, "gamma", "ab" * 32, ["finished", "finished", "pruned", "failed"])
    view = choose(tmp_path, Watcher(tmp_path).look(), None)
    screen = shown(render(view))
    assert view.standing == "unknown"
    assert "no driver tells of itself here" in screen
    assert "4 trials  2 finished · 0 reused · 1 pruned · 1 failed" in screen


HOSTILE = {
    "text.a.json": b"not JSON",
    "deep.a.json": b"[" * 100_000,
    "cut.a.json": told().model_dump_json().encode()[:100],
    "stranger.a.json": b'{"sweep": "x"}',
    "bytes.a.json": bytes(range(256)),
    "large.a.json": b" " * 2_000_000 + told("large").model_dump_json().encode(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_word_is_passed_over(tmp_path: Path, name: str) -> None:
    tell(tmp_path, told())
    (tmp_path / "live" / name).write_bytes(HOSTILE[name])
    assert [view.sweep for view in Watcher(tmp_path).look()] == ["gamma"]


def test_a_word_of_a_later_version_is_understood(tmp_path: Path) -> None:
    path = tell(tmp_path, told())
    path.write_text(path.read_text().replace('"epochs":12', '"epochs":12,"phase":"x"').replace("{", '{"new":[1],', 1))
    (view,) = Watcher(tmp_path).look()
    assert view.snapshots == [told()]


def test_what_is_no_file_is_passed_over(tmp_path: Path) -> None:
    tell(tmp_path, told())
    (tmp_path / "live" / "folder.json").mkdir()
    os.mkfifo(tmp_path / "live" / "pipe.json")
    (tmp_path / "live" / "loop.json").symlink_to(tmp_path / "live" / "loop.json")
    assert len(Watcher(tmp_path).look()) == 1


def test_texts_of_others_move_no_cursor_and_are_no_markup(tmp_path: Path) -> None:
    evil = "\x1b[2J\x07[red]x[/]\u202e"
    tell(tmp_path, told(title=evil, host=evil, rows=(ROW.model_copy(update={"label": evil, "settings": evil}),)), "a")
    (view,) = Watcher(tmp_path).look()
    screen = shown(render(view), 300)
    assert "\x1b" not in screen
    assert "\u202e" not in screen
    assert screen.count("[red]x[/]") >= 3


# The command -----------------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything in a folder, with times."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in folder.rglob("*")
    }


def test_one_look_writes_nothing_and_ends_well(tmp_path: Path) -> None:
    tell(tmp_path, told(state="done", counts={"finished": 14, "failed": 1}, running=0, rows=()))
    record(tmp_path, told(), 0)
    before = tree(tmp_path)
    done = CliRunner().invoke(app, ["watch", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "sweep gamma: done, 1 failed" in done.output
    assert "15/15 trials" in done.output
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads and writes everything")
def test_somebody_elses_folder_is_enough(tmp_path: Path) -> None:
    """Read by a process that may write nowhere here and own nothing here."""
    tell(tmp_path, told(state="done"))
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    script = "import sys; from bench.cli import main; sys.argv = ['bench', *sys.argv[1:]]; main()"
    command = [sys.executable, "-c", script, "watch", "--out", ".", "--once"]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
    try:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "sweep gamma: done" in done.stdout
    finally:
        for path in (tmp_path, tmp_path / "live"):
            path.chmod(0o755)


def test_a_terminal_is_kept_up_to_date_until_the_sweep_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL", 0.02)
    monkeypatch.setattr(watch, "BEAT", 0.05)
    ended = threading.Event()

    def drive() -> None:
        beat = 0
        while not ended.wait(0.02):
            beat += 1
            tell_whole(tmp_path, told(beat=beat, rows=(ROW.model_copy(update={"epoch": min(beat, 11)}),)))
        tell_whole(tmp_path, told(beat=beat + 1, state="done", running=0, rows=(), counts={"finished": 15}))

    tell_whole(tmp_path, told())
    driver = threading.Thread(target=drive)
    driver.start()
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30, color_system=None)
    timer = threading.Timer(1.0, ended.set)
    timer.start()
    watch.watch(tmp_path, None, console)
    driver.join()
    screen = console.file.getvalue()  # type: ignore[attr-defined]
    assert "11/12" in screen
    last = screen[screen.rindex("sweep gamma: ") :]
    assert last.startswith("sweep gamma: done")
    assert "15/15 trials" in last


def tell_whole(out: Path, snapshot: Snapshot) -> None:
    """Replace a word at once, as a driver does."""
    whole = tell(out / "aside", snapshot)
    (out / "live").mkdir(exist_ok=True)
    whole.replace(out / "live" / whole.name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "80"], "go with --serve"),
        (["--once", "--serve"], "leave out --serve"),
        (["--out", "s3://bucket/results"], "reads a folder"),
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["watch", *arguments])
    assert isinstance(result.exception, BadInput)
    assert said in str(result.exception)


DRIVER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from bench.live import Snapshot, telling
with telling(Path(sys.argv[1]), lambda: Snapshot(sweep="gamma", sweep_id="ab" * 32, title="q?")):
    time.sleep(600)
"""


@pytest.mark.parametrize(("how", "standing"), [(signal.SIGINT, "interrupted"), (signal.SIGKILL, "silent")])
def test_a_driver_that_ends_is_told_from_one_that_lives(tmp_path: Path, how: int, standing: str) -> None:
    root = str(Path(__file__).parents[1])
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, tmp_path, root], stderr=subprocess.DEVNULL)
    try:
        clock = Clock()
        watcher = Watcher(tmp_path, clock)
        until(lambda: (views := watcher.look()) and views[0].drivers[0].renewed, 30)
        assert watcher.look()[0].standing == "running"
    finally:
        driver.send_signal(how)
        driver.wait()
    watcher.look()
    clock.now += SILENT
    assert watcher.look()[0].standing == standing


SWEEP = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "{data}"
image_size = 16
epochs = 40
batch_size = 16
[space]
temperature = {{ log_uniform = [0.1, 1.0] }}
[search]
trials = 1
[evaluate]
datasets = ["{data}"]
[confirm]
seeds = []
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_real_sweep_is_seen_from_outside(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make_pictures(data)
    (tmp_path / "tiny.toml").write_text(SWEEP.format(data=data))
    environment = os.environ | {"BENCH_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    bench = [sys.executable, "-m", "bench"]
    command = [*bench, "run", "--sweep", "tiny.toml", "--out", "out", "--cpus", "1"]
    root = Path(__file__).parents[1]
    environment["PYTHONPATH"] = str(root)
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen: list[Snapshot] = []
    watcher = Watcher(out)
    while run.poll() is None:
        seen += [snapshot for view in watcher.look() for snapshot in view.snapshots]
        time.sleep(0.1)
    assert run.returncode == 0, run.stdout.read().decode() if run.stdout else ""
    if run.stdout:
        run.stdout.close()
    assert {snapshot.total for snapshot in seen} == {1}
    assert any(row.epoch and row.loss and row.epochs == 40 for snapshot in seen for row in snapshot.rows)
    (view,) = watcher.look()
    assert (view.standing, view.snapshots[0].ended, view.snapshots[0].rows) == ("done", 1, ())
    done = subprocess.run([*bench, "watch", "--out", "out"], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, b"tiny: done" in done.stdout) == (0, True)


def make_pictures(folder: Path) -> None:
    """24 pictures of two classes: stripes of two directions."""
    import numpy as np
    from PIL import Image

    dice = np.random.default_rng(0)
    y, x = np.mgrid[0:24, 0:24]
    for name, field in (("across", y), ("down", x)):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            wave = 128 + 90 * np.sin(field * dice.uniform(0.5, 0.9))[..., None] * dice.uniform(-1, 1, 3)
            Image.fromarray(wave.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")
