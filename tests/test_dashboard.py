"""A sweep's studies as Optuna's own tools open them: any JournalStorage, and optuna-dashboard."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState

from bench.plan import make_plan
from bench.scheduling.agenda import Agenda
from bench.study import study_path
from bench.sweepfile import load_sweep

SWEEP = """
title = "q?"
[candidates.simclr]
space = { temperature = { log_uniform = [0.1, 1.0] }, "gamma.enabled" = { choice = [true, false] } }
[candidates.jigsaw]
space = { permutations = { choice = [10, 30, 100] } }
[pretrain]
dataset = "leaves"
epochs = 9
[search]
trials = 3
prune = { grace = 3 }
[evaluate]
datasets = ["leaves"]
[confirm]
seeds = []
"""
RUNNING = {"simclr": 1, "jigsaw": 0}  # draws that have not ended when the study is opened


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    """The journal of a search that runs: of each candidate, draw 0 or 1 still trains, one draw was pruned."""
    path = tmp_path / "mine.toml"
    path.write_text(SWEEP)
    plan = make_plan(load_sweep(str(path)), out=tmp_path / "out", cache=tmp_path / "cache")
    agenda = Agenda(plan)
    for number in range(6):
        job = agenda.take(str(number))
        assert job is not None
        assert job.draw is not None
        if job.draw == 2:
            assert not agenda.at_rung(str(number), 3, 0.25)
            agenda.end(str(number), {"epoch": 3, "rung_objective": 0.25})
        elif job.draw != RUNNING[job.configuration]:
            agenda.at_rung(str(number), 3, 0.375)
            agenda.end(str(number), {"finished": True, "objective": 0.5, "epoch": 9})
    for draws in agenda._draws.values():
        agenda._prune(draws.halving.rest())
    yield study_path(plan)
    agenda.close()


def expected(name: str) -> list[TrialState]:
    states = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED]
    states[RUNNING[name]] = TrialState.RUNNING
    return states


def test_any_journal_storage_opens_every_candidate(study: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(study)))
    assert set(optuna.get_all_study_names(storage)) == set(RUNNING)
    for name in RUNNING:
        opened = optuna.load_study(study_name=name, storage=storage)
        assert [trial.state for trial in opened.trials] == expected(name)
        assert opened.direction == optuna.study.StudyDirection.MAXIMIZE
        assert opened.best_value == 0.5
        pruned = opened.trials[2]
        assert (pruned.value, pruned.intermediate_values) == (0.25, {3: 0.25})
        assert all(trial.params for trial in opened.trials)


class Dashboard:
    """optuna-dashboard on a file, asked without a socket."""

    def __init__(self, path: Path) -> None:
        pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed: the extra `test` has it")
        from optuna_dashboard import wsgi
        from optuna_dashboard._storage_url import get_storage

        self._app: Any = wsgi(get_storage(str(path)))  # the storage that its command makes of a file's path

    def get(self, path: str) -> Any:
        said: list[str] = []
        environment = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path.partition("?")[0],
            "QUERY_STRING": path.partition("?")[2],
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8080",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": io.StringIO(),
        }
        body = b"".join(self._app(environment, lambda *answer: said.append(answer[0])))
        assert said == ["200 OK"], body
        return json.loads(body)


def test_the_dashboard_lists_every_candidate_with_its_draws(study: Path) -> None:
    dashboard = Dashboard(study)
    listed = {each["study_name"]: each["study_id"] for each in dashboard.get("/api/studies")["study_summaries"]}
    assert set(listed) == set(RUNNING)
    for name, number in listed.items():
        trials = dashboard.get(f"/api/studies/{number}")["trials"]
        assert [trial["state"].upper() for trial in trials] == [state.name for state in expected(name)]
        assert [trial.get("values") for trial in trials if trial["state"] != "Running"] == [[0.5], [0.25]]
    simclr = dashboard.get(f"/api/studies/{listed['simclr']}")["trials"]
    assert {each["name"] for each in simclr[0]["params"]} == {"temperature", "gamma.enabled"}


def test_the_dashboard_follows_a_search_and_disturbs_no_driver(study: Path) -> None:
    before = study.read_bytes()
    dashboard = Dashboard(study)
    lock = JournalFileSymlinkLock(str(study))
    assert lock.acquire()  # as a driver does while it writes
    try:
        studies = {each["study_name"]: each["study_id"] for each in dashboard.get("/api/studies")["study_summaries"]}
        dashboard.get(f"/api/studies/{studies['jigsaw']}")
        dashboard.get(f"/api/studies/{studies['jigsaw']}/param_importances?evaluator=ped_anova")
    finally:
        lock.release()
    assert study.read_bytes() == before
    assert [path.name for path in study.parent.iterdir() if not path.name.startswith(".")] == [study.name]
    driver = optuna.load_study(study_name="simclr", storage=JournalStorage(JournalFileBackend(str(study))))
    driver.tell(RUNNING["simclr"], 0.75)
    trials = dashboard.get(f"/api/studies/{studies['simclr']}")["trials"]
    assert trials[RUNNING["simclr"]]["values"] == [0.75]
