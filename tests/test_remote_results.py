"""`--out s3://...`: sweeps whose results lie on a store, on machines that come and go, with a real local S3 server.

A machine is a cache folder: each has a mirror of its own. Jobs run in this process, without Ray (`Lab.drive`), but for
the slow tests.
"""

import errno
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import bench
from bench import mirror, patience
from bench.cli import app
from bench.errors import BadInput, BenchError, StoreAway
from bench.execution import run_job
from bench.job import Job
from bench.plan import make_plan
from bench.results.ledger import Ledger
from bench.scheduling import lease
from bench.scheduling.agenda import Agenda
from bench.sweepfile import load_sweep
from tests.faults import CPU, HUNGRY, SLOW, Lab, paint, prepare
from tests.stores import Shop, serving

pytestmark = pytest.mark.timeout(280)
OUT = "s3://box/runs"


class Far(Lab):
    """A lab whose results lie on the store unless another `out` is named."""

    @contextmanager
    def machine(self, name: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BENCH_CACHE", str(self.folder / name))
            yield

    def agenda(self, sweep: Path, out: str = OUT, over: dict[str, Any] | None = None, **how: Any) -> Agenda:
        where = out if "://" in out else self.folder / out
        return Agenda(make_plan(load_sweep(str(sweep), over=over or {}), out=where, cache=self.folder / "cache"), **how)

    def frame(self, out: str = OUT) -> Any:
        folder = mirror.opened(out, "ledger") if "://" in out else self.folder / out
        reading = Ledger(folder).read()
        assert reading.problems == []
        return reading.frame

    def results(self, out: str = OUT) -> list[tuple[Any, ...]]:
        return super().results(out)

    def whole(self, sweep: Path, out: str = OUT, **how: Any) -> Agenda:
        """A run from beginning to end."""
        agenda = self.agenda(sweep, out, **how)
        self.drive(agenda)
        agenda.close()
        return agenda

    def crash(self, agenda: Agenda) -> None:
        """End a driver as kill -9 does, on this machine."""
        agenda._lease._ended.set()
        path = agenda._lease.path
        mirror.write(path, json.dumps(agenda._lease._own | {"start": "0"}).encode())

    def here(self, shop: Shop, name: str) -> Path:
        """A plain folder with what the store has."""
        for key in shop.objects("runs/"):
            path = self.folder / name / key.removeprefix("runs/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(shop.get(key))
        return self.folder / name


@pytest.fixture(scope="module")
def server() -> Iterator[Shop]:
    with serving() as shop:
        yield shop


@pytest.fixture(scope="module")
def stripes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("data") / "stripes")


@pytest.fixture
def shop(server: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    server.clear()
    return server


@pytest.fixture
def lab(tmp_path: Path, stripes: Path, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:  # noqa: ARG001
    prepare(tmp_path, stripes, monkeypatch)
    monkeypatch.setattr(lease, "_SETTLE", 0.0)
    monkeypatch.setattr(lease, "_LOOK", 0.05)
    monkeypatch.setattr(mirror, "SHARE", 1e9)  # every checkpoint goes to the store
    yield Far(tmp_path, stripes)
    for thread in threading.enumerate():
        if thread.name == "lease":  # one that is held for ever would meddle with the next test's
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def afresh(job: Job) -> Job:
    """The job as a worker on another machine gets it."""
    return Job.model_validate_json(job.model_dump_json())


def on(lab: Far, name: str) -> Any:
    """Run jobs on another machine."""

    def run(job: Job, report: Any) -> None:
        with lab.machine(name):
            run_job(afresh(job), report, CPU)

    return run


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.output


def test_a_sweep_on_a_store_is_one_in_a_folder_on_any_machine(lab, shop):
    sweep = lab.sweep(trials=3, epochs=2, seeds="[0]")
    lab.whole(sweep, "calm")
    agenda = lab.agenda(sweep)
    lab.drive(agenda, on(lab, "worker"))
    agenda.close()
    assert (agenda.tally.ran, agenda.tally.failures) == (4, [])
    assert lab.results() == lab.results("calm")
    folders = {key.split("/")[1] for key in shop.objects()}
    assert folders == {"ledger", "studies", "sweeps", "trials"}
    kinds = Counter(key.rsplit("/", 1)[1] for key in shop.objects("runs/trials/"))
    assert kinds == {"encoder.safetensors": 4, "trial.json": 4}  # no checkpoint is left
    assert [key for key in shop.objects() if key.endswith((".driver", ".tail"))] == []
    with lab.machine("empty"):
        again = lab.whole(sweep)
        assert (again.tally.ran, again.tally.reused) == (0, 4)
        assert lab.results() == lab.results("calm")
    assert not any(b"SeCrEt" in shop.get(key) for key in shop.objects())


def test_any_store_that_bench_reads_will_do(lab, tmp_path):
    sweep, out = lab.sweep(trials=2, epochs=2), f"memory://{tmp_path.name}/runs"
    lab.whole(sweep, "calm")
    assert lab.whole(sweep, out).tally.ran == 2
    with lab.machine("other"):
        assert lab.results(out) == lab.results("calm")
        assert lab.whole(sweep, out).tally.reused == 2


def test_reports_of_the_address_are_those_of_the_folder(lab, shop):
    sweep = lab.sweep(trials=3, epochs=1, seeds="[0, 1]")
    lab.whole(sweep)
    copy = str(lab.here(shop, "copy"))
    for form in ("terminal", "md", "csv", "json", "latex", "card"):
        with lab.machine(form):
            assert said("report", "--out", OUT, "--format", form) == said("report", "--out", copy, "--format", form)
    pages = []
    for out in (OUT, copy):
        with lab.machine("page"):
            said("report", "--out", out, "--no-pictures", "--html", str(lab.folder / "page.html"))
        pages.append((lab.folder / "page.html").read_text())
    assert pages[0] == pages[1]
    assert "trial.json" in pages[0]
    assert not list(lab.folder.glob("page/results/*/trials/*/*.safetensors"))
    with lab.machine("notebook"):
        frame = bench.load_results(OUT)
    assert frame.equals(bench.load_results(copy))
    with lab.machine("dry"):
        plan = said("run", "--sweep", str(sweep), "--out", OUT, "--dry-run")
    assert plan.count("finished") == 5
    assert "to run" not in plan


def test_compaction_and_export_take_the_address(lab, shop):
    lab.whole(lab.sweep(trials=3, epochs=1, seeds="[0]"))
    before = lab.results()
    with lab.machine("other"):
        assert "s3://box/runs/ledger/compact." in said("compact", "--out", OUT)
        (file,) = shop.objects("runs/ledger/")
        assert file.startswith("runs/ledger/compact.")
        assert lab.results() == before
    assert lab.results() == before  # also in the mirror that had the small files
    with lab.machine("third"):
        said("export", "simclr", "--seed", "0", "--out", OUT, "--to", str(lab.folder / "encoder"))
    assert (lab.folder / "encoder" / "model.safetensors").is_file()
    with pytest.raises(BenchError, match="s3://box/nothing: no results yet"):
        said("report", "--out", "s3://box/nothing")
    with pytest.raises(BadInput, match="s3://box/nothing: no results here"):
        bench.load_results("s3://box/nothing")


def broken_off(job: Job, epoch: int) -> None:
    """Train until an epoch's checkpoint is written, and die."""

    class Killed(BaseException):
        pass

    def report(facts: dict[str, Any]) -> None:
        if facts.get("epoch") == epoch:
            raise Killed

    with pytest.raises(Killed):
        run_job(job, report, CPU)


def test_another_machine_goes_on_from_the_stores_checkpoint(lab):
    sweep = lab.sweep(epochs=5)
    lab.whole(sweep, "calm")
    agenda = lab.agenda(sweep)
    job = agenda.take("0")
    assert job is not None
    with lab.machine("first"):
        broken_off(afresh(job), 3)
    reports: list[dict[str, Any]] = []
    with lab.machine("second"):
        run_job(afresh(job), reports.append, CPU)
    agenda.end("0", reports[-1])
    agenda.close()
    assert [report["epoch"] for report in reports] == [3, 4, 5, 5]  # the last one before may not have been heard
    assert lab.results() == lab.results("calm")


def test_a_draw_that_waits_at_a_rung_goes_on_from_there_though_uploads_are_spared(lab, monkeypatch):
    monkeypatch.setattr(mirror, "SHARE", 1e-4)  # uploads are slow against epochs
    agenda = lab.agenda(lab.sweep(epochs=5))
    job = agenda.take("0").model_copy(update={"rungs": (3,)})
    with lab.machine("first"):
        broken_off(afresh(job), 3)
    reports: list[dict[str, Any]] = []
    with lab.machine("second"):
        run_job(afresh(job.model_copy(update={"rungs": ()})), reports.append, CPU)
    assert [report["epoch"] for report in reports] == [3, 4, 5, 5]
    agenda.close()


def test_of_a_checkpoint_that_was_cut_short_the_one_before_is_used(lab, shop):
    sweep = lab.sweep(epochs=5)
    lab.whole(sweep, "calm")
    agenda = lab.agenda(sweep)
    job = agenda.take("0")
    assert job is not None
    with lab.machine("first"):
        broken_off(afresh(job), 3)
    (state,) = (key for key in shop.objects() if key.endswith("/state.safetensors"))
    shop.put(state, shop.get(state)[:5000])
    reports: list[dict[str, Any]] = []
    with lab.machine("second"):
        run_job(afresh(job), reports.append, CPU)
    assert [report["epoch"] for report in reports] == [2, 3, 4, 5, 5]
    assert "goes on from the checkpoint before it" in reports[0]["notes"][0]
    assert b"goes on from the checkpoint" in shop.get(state.replace("state.safetensors", "notes.txt"))
    agenda.end("0", reports[-1])
    agenda.close()
    assert lab.results() == lab.results("calm")


@pytest.mark.parametrize("when", ["draw", "checkpoint", "rows", "told"])
def test_a_driver_that_dies_is_followed_on_another_machine_and_nothing_is_run_twice(when, lab):
    """It dies with a draw made, with a checkpoint, with rows that nobody was told of, and with a trial told of."""
    sweep = lab.sweep(trials=4, epochs=3, seeds="[0]")
    lab.whole(sweep, "calm")
    with lab.machine("head"):
        first = lab.agenda(sweep)
        known = []
        for number in range(2):
            job = first.take(str(number))
            assert job is not None
            known.append(job)
            if number == 0 or when in ("rows", "told"):
                reports: list[dict[str, Any]] = []
                run_job(afresh(job), reports.append, CPU)
                if number == 0 or when == "told":
                    first.end(str(number), reports[-1])
            elif when == "checkpoint":
                broken_off(afresh(job), 2)
        lab.crash(first)
    with lab.machine("new head"):
        again = lab.agenda(sweep)
        jobs = lab.drive(again)
        again.close()
        assert lab.results() == lab.results("calm")
    done = 2 if when in ("rows", "told") else 1
    assert (again.tally.ran, again.tally.reused) == (5 - done, done)
    assert not {job.trial.id for job in jobs} & {job.trial.id for job in known[:done]}
    if done == 1:
        assert jobs[0].trial == known[1].trial  # the same draw
    rows = lab.frame().drop_duplicates(["trial_id", "stage"])
    assert sorted(rows["draw"].dropna()) == [0, 1, 2, 3]


def test_a_failed_trial_is_told_with_its_traceback_and_run_again_on_another_machine(lab, shop):
    sweep = lab.sweep(lab.method("hungry", HUNGRY), trials=3, epochs=1)
    agenda = lab.agenda(sweep)

    def run(job: Job, report: Any) -> None:
        from bench.scheduling.trainable import failed

        with lab.machine("worker"):
            job = afresh(job)
            try:
                run_job(job, report, CPU)
            except MemoryError as error:
                report(failed(job, error))

    lab.drive(agenda, run)
    agenda.close()
    (failure,) = agenda.tally.failures
    assert b"hungry.py" in shop.get(f"runs/{failure.file}")
    body = HUNGRY.replace("0.13", "0.0")
    (lab.folder / "faulty" / "hungry.py").write_text(
        (lab.folder / "faulty" / "hungry.py").read_text().replace("0.13", "0")
    )
    assert body != HUNGRY
    import sys

    from bench import registry

    sys.modules.pop("faulty.hungry")
    for name in dir(registry):
        getattr(getattr(registry, name), "cache_clear", lambda: None)()
    with lab.machine("other"):
        again = lab.agenda(sweep, retry_failed=True)
        lab.drive(again, on(lab, "third"))
        again.close()
        assert (again.tally.ran, again.tally.reused, again.tally.failures) == (1, 2, [])
    assert set(lab.frame()["status"]) == {"finished"}
    assert failure.file is not None
    assert f"runs/{failure.file}" not in shop.objects()


def test_force_on_another_machine_runs_everything_anew(lab, shop):
    sweep = lab.sweep(trials=2, epochs=1)
    lab.whole(sweep)
    before, old = lab.results(), set(shop.objects("runs/ledger/"))
    with lab.machine("other"):
        again = lab.agenda(sweep, force=True)
        lab.drive(again, on(lab, "third"))
        again.close()
        assert again.tally.ran == 2
        assert lab.results() == before
    assert lab.results() == before
    assert not old & set(shop.objects("runs/ledger/"))


def test_a_second_driver_says_who_drives_or_takes_over(lab, shop, monkeypatch):
    sweep = lab.sweep(trials=2, epochs=1)
    monkeypatch.setattr(lease, "RENEW", 0.1)
    monkeypatch.setattr(lease, "PATIENCE", 5.0)
    first = lab.agenda(sweep)
    here = rf"s3://box/runs: another driver runs this sweep \(process {os.getpid()} on .*, since .* UTC\)"
    begin = time.monotonic()
    with lab.machine("other"), pytest.raises(BadInput, match=here):
        lab.agenda(sweep)
    assert time.monotonic() - begin < 3
    lab.drive(first)
    first.close()
    # One that changes no more is taken over; when it wakes up, it notices.
    monkeypatch.setattr(lease, "PATIENCE", 0.5)
    asleep, longer = (fallen_asleep(lab.agenda(lab.sweep(trials=3, epochs=1))) for _ in range(2))
    with lab.machine("other"):
        second = lab.agenda(lab.sweep(trials=3, epochs=1))
        lab.drive(second)
    notice(asleep, r"another driver runs this sweep \(process .*; it took over, as if this one had ended")
    assert any(key.endswith(".driver") for key in shop.objects())  # the second one's
    second.close()
    assert not any(key.endswith(".driver") for key in shop.objects())
    notice(longer, "this driver's lease is gone: another one took over and has ended")
    assert not any(key.endswith(".driver") for key in shop.objects())
    last = lab.whole(lab.sweep(trials=3, epochs=1))
    assert (last.tally.ran, last.tally.reused) == (0, 3)


def fallen_asleep(agenda: Agenda) -> Agenda:
    agenda._lease._ended.set()
    with agenda._lease._busy:  # a renewal that is on its way would arrive after the next driver's
        return agenda


def notice(awake: Agenda, said: str) -> None:
    """A driver that wakes up after another one took over ends, and changes nothing."""
    awake._lease._ended.clear()
    for step in (lambda: awake.take("0"), awake.close):
        with pytest.raises(BenchError, match=said):
            step()


@pytest.mark.usefixtures("shop")
def test_a_store_that_misses_a_name_once_does_not_end_a_driver(lab, monkeypatch):
    agenda = lab.agenda(lab.sweep(trials=2, epochs=1))
    read, missed = mirror.read, [None]
    with monkeypatch.context() as patch:
        patch.setattr(lease, "PATIENCE", 0.0)  # every check looks at the store
        patch.setattr(mirror, "read", lambda path: missed.pop() if missed else read(path))
        agenda._lease.check()
    assert not missed
    lab.drive(agenda)
    agenda.close()
    assert agenda.tally.ran == 2


def test_a_driver_that_cannot_begin_leaves_the_sweep_to_others(lab, shop, monkeypatch):
    sweep = lab.sweep(trials=2, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr("bench.scheduling.agenda.begin_studies", full)
        with pytest.raises(OSError, match="full"):
            lab.agenda(sweep)
    assert not any(key.endswith(".driver") for key in shop.objects())
    with lab.machine("other"):
        assert lab.whole(sweep).tally.ran == 2


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "full")


def test_a_store_that_is_away_for_a_while_changes_nothing(lab, shop, monkeypatch):
    sweep = lab.sweep(trials=2, epochs=3)
    lab.whole(sweep, "calm")
    monkeypatch.setattr(patience, "WAITS", (0.05,) * 100)
    agenda = lab.agenda(sweep)

    def run(job: Job, report: Any) -> None:
        def away(facts: dict[str, Any]) -> None:
            if facts.get("epoch") == 2:
                shop.close()
                threading.Timer(0.4, shop.open).start()
            report(facts)

        run_job(job, away, CPU)

    lab.drive(agenda, run)
    agenda.close()
    assert (agenda.tally.ran, agenda.tally.failures) == (2, [])
    assert lab.results() == lab.results("calm")


def test_a_store_that_stays_away_is_one_error_and_the_next_command_goes_on(lab, shop, monkeypatch):
    sweep = lab.sweep(trials=2, epochs=3)
    lab.whole(sweep, "calm")
    monkeypatch.setattr(patience, "WAITS", (0.01,) * 3)
    agenda = lab.agenda(sweep)

    def run(job: Job, report: Any) -> None:
        def away(facts: dict[str, Any]) -> None:
            if facts.get("epoch") == 2:
                shop.close()
            report(facts)

        run_job(job, away, CPU)

    with pytest.raises(StoreAway, match=r"^s3://box/runs: the store does not answer: .* the same command goes on"):
        lab.drive(agenda, run)
    with pytest.raises(StoreAway):
        agenda.close()
    shop.open()
    lab.crash(agenda)
    with lab.machine("other"):
        again = lab.whole(sweep)
        assert (again.tally.ran, again.tally.failures) == (2, [])
        assert lab.results() == lab.results("calm")


@pytest.mark.usefixtures("shop")
def test_an_address_that_is_wrong_is_said_before_anything_starts(lab):
    sweep = lab.sweep()
    for wrong, reason in {
        "s3://nowhere/x": "s3://nowhere/x: there is no bucket 'nowhere'",
        "s3://box/x?regio=eu": "no option is named 'regio'; did you mean 'region'",
        "s3://key:SeCrEt@box/x": "credentials in an address",
        "nothing://x": "Protocol not known: nothing",
    }.items():
        for use in (lambda out: make_plan(load_sweep(str(sweep)), out=out, cache=lab.folder), bench.load_results):
            with pytest.raises(BadInput, match=re.escape(reason)):
                use(wrong)


def test_what_a_trial_asks_of_the_store(lab, shop, monkeypatch):
    """The figures of docs/cluster/README.md."""
    monkeypatch.setattr(lease, "RENEW", 1000.0)
    counts = {}
    for epochs in (2, 6):
        shop.clear()
        agenda = lab.agenda(lab.sweep(trials=4, epochs=epochs))
        asked = []

        def run(job: Job, report: Any, asked: list[int] = asked) -> None:
            run_job(job, report, CPU)
            asked.append(len(shop.asked))

        lab.drive(agenda, run)
        agenda.close()
        counts[epochs] = Counter(line.partition(" ")[0] for line in shop.asked[asked[-2] : asked[-1]])
    # Once: the draw, one listing, trial.json, encoder, row, and three requests for each of two checkpoints to remove.
    # An epoch: the former checkpoint is copied, but for the first, and the new one put.
    assert counts == {n: {"PUT": 5 + 2 * n, "GET": 1, "HEAD": 2, "DELETE": 2} for n in (2, 6)}


def await_object(shop: Shop, part: str, process: Any) -> None:
    deadline = time.monotonic() + 200
    while not any(part in key for key in shop.objects("runs/")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_driver_is_followed_from_an_empty_cache_on_ray(lab, shop, monkeypatch):
    """kill -9 of `bench run`, then the same command on another machine; on the way a second driver is sent away."""
    marker = lab.folder / "steps"
    marker.mkdir()
    command = "--sweep", str(lab.sweep(lab.method("slow", SLOW), epochs=6, trials=3, seeds="[0]")), "--out", OUT
    first = lab.start(*command, MARKER=str(marker))
    await_object(shop, "/ledger/", first)  # one trial is finished,
    await_object(shop, "/state.previous.", first)  # another one has checkpoints
    other = lab.start(*command, MARKER=str(marker), BENCH_CACHE=str(lab.folder / "third"))
    _, error = other.communicate(timeout=200)
    assert other.returncode == 2
    assert "another driver runs this sweep" in error
    first.kill()
    first.communicate(timeout=60)
    known = len(shop.objects("runs/ledger/"))
    second = lab.start(*command, MARKER=str(marker), BENCH_CACHE=str(lab.folder / "empty"))
    told, error = second.communicate(timeout=300)
    assert (second.returncode, error) == (0, "")
    assert f"{4 - known} trials ran, 0 pruned, {known} known already, 0 failed; everything is under {OUT}" in told
    taken = [line for path in marker.iterdir() for line in path.read_text().splitlines()]
    assert len(set(taken)) == 3 * 18  # the confirmed one is the best with another seed
    assert 4 * 18 <= len(taken) < 5 * 18  # what was not saved was taken again
    marker.rename(lab.folder / "done")
    marker.mkdir()
    monkeypatch.setenv("MARKER", str(marker))
    lab.whole(lab.folder / "mine.toml", "calm")
    assert lab.results() == lab.results("calm")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_store_that_goes_for_good_ends_the_command_with_one_error(lab, shop):
    marker = lab.folder / "steps"
    marker.mkdir()
    command = "--sweep", str(lab.sweep(lab.method("slow", SLOW), epochs=6, trials=2)), "--out", OUT
    first = lab.start(*command, MARKER=str(marker))
    await_object(shop, "/state.previous.", first)
    shop.close()
    told, error = first.communicate(timeout=400)
    shop.open()
    assert first.returncode == 2, (told, error)
    assert error.startswith(f"error: {OUT}: the store does not answer: ")
    assert error.count("\n") == 1
    second = lab.start(*command, MARKER=str(marker), BENCH_CACHE=str(lab.folder / "empty"))
    told, error = second.communicate(timeout=300)
    assert (second.returncode, error) == (0, "")
    assert "2 trials ran, 0 pruned, 0 known already, 0 failed" in told
