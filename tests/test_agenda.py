"""The agenda without Ray: what runs next, what is known already, and that test scores choose nothing."""

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.execution import trial_facts
from bench.forecast import forecast
from bench.job import Job
from bench.plan import Plan, make_plan
from bench.results.ledger import Ledger
from bench.results.questions import questions
from bench.results.schema import Measurement, rows_table
from bench.results.selection import of_sweep
from bench.scheduling.agenda import DIED, Agenda
from bench.study import preview
from bench.sweepfile import load_sweep

SWEEP = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "leaves"
epochs = 9
[space]
temperature = { log_uniform = [0.1, 1.0] }
[search]
trials = 5
startup = 2
prune = { grace = 3 }
[evaluate]
datasets = ["leaves"]
[confirm]
seeds = [0, 1]
baselines = [{ name = "no gamma", set = { "gamma.enabled" = false } }]
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return remake(tmp_path)


def remake(folder: Path, text: str = SWEEP, name: str = "mine", **over: Any) -> Plan:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return make_plan(load_sweep(str(path), over=over), out=folder / "out", cache=folder / "cache")


def finish(agenda: Agenda, key: str, job: Job, objective: float, test: float = 0.5) -> None:
    """What a worker and Tune do when a trial ends well."""
    facts = trial_facts(job, status="finished", objective=objective, epochs=9, started_at=datetime.now(UTC))
    row = Measurement(
        dataset="leaves", protocol="linear", split="test", metric="top1", value=test, headline=True, samples=10
    )
    agenda.ledger.write(rows_table(facts, [row]))
    agenda.end(key, {"finished": True, "objective": objective, "epoch": 9})


def run(agenda: Agenda, score: Any, test: Any = lambda _: 0.5) -> list[Job]:
    jobs = []
    while not agenda.is_done():
        job = agenda.take(str(len(jobs)))
        assert job is not None
        jobs.append(job)
        finish(agenda, str(len(jobs) - 1), job, score(job), test(job))
    return jobs


def temperature(job: Job) -> float:
    return float(job.trial.config.get("temperature", 0.0))


def test_search_then_confirm_then_nothing(plan):
    jobs = run(Agenda(plan), temperature)
    search, confirm = jobs[:5], jobs[5:]
    assert [job.draw for job in search] == [0, 1, 2, 3, 4]
    assert len({job.trial.id for job in jobs}) == len(jobs)
    best = max(search, key=temperature)
    names = [(job.configuration, job.role, job.trial.seed) for job in confirm]
    assert names == [
        (name, role, seed)
        for seed in (0, 1)
        for name, role in (("simclr", "best"), ("no gamma", "baseline"), ("random_init", "control"))
    ]
    assert all(temperature(job) == temperature(best) for job in confirm if job.role != "control")
    assert {job.trial.config["gamma"]["enabled"] for job in confirm if job.role == "baseline"} == {False}
    assert not {job.trial.seed for job in search} & {job.trial.seed for job in confirm}


def test_what_was_asked_is_kept_beside_the_results(plan):
    Agenda(plan)
    assert questions(plan.out) == {"mine": "q?"}


def test_the_same_command_again_runs_nothing(plan, tmp_path):
    first = run(Agenda(plan), temperature)
    again = Agenda(remake(tmp_path))
    assert again.is_done()
    assert again.tally.reused == len(first)
    assert again.tally.ran == 0


def test_the_same_command_again_lists_the_ledger_a_few_times_however_many_trials_it_holds(plan, tmp_path, monkeypatch):
    first = run(Agenda(plan), temperature)
    listed: list[str] = []
    take = Ledger.listing
    monkeypatch.setattr(Ledger, "listing", lambda ledger, prefix="": listed.append(prefix) or take(ledger, prefix))
    again = Agenda(remake(tmp_path))
    assert again.is_done()
    assert again.tally.reused == len(first)
    assert listed == ["", ""]
    assert again.best("simclr").value == max(map(temperature, first[:5]))


def test_another_sweep_reuses_the_finished_trials(plan, tmp_path):
    run(Agenda(plan), temperature)
    other = remake(tmp_path, name="other")
    agenda = Agenda(other)
    assert agenda.is_done()
    frame = Ledger(other.out).read("other").frame
    assert set(frame["reused"]) == {True}
    assert len(frame["trial_id"].unique()) == 11
    assert not Ledger(other.out).read("mine").frame["reused"].any()


def test_more_trials_go_on_with_the_same_draws(plan, tmp_path):
    run(Agenda(plan), temperature)
    jobs = run(Agenda(remake(tmp_path, search={"trials": 7})), temperature)
    assert [job.draw for job in jobs if job.stage == "search"] == [5, 6]


def test_an_interrupted_search_draws_what_an_uninterrupted_one_draws(plan, tmp_path):
    whole = run(Agenda(plan), temperature)
    (tmp_path / "b").mkdir()
    cut = remake(tmp_path / "b")
    agenda = Agenda(cut)
    for key in ("0", "1"):
        job = agenda.take(key)
        finish(agenda, key, job, temperature(job))
    interrupted = agenda.take("2")  # and the process dies
    resumed = run(Agenda(remake(tmp_path / "b")), temperature)
    assert resumed[0].trial == interrupted.trial
    assert [job.trial.id for job in resumed] == [job.trial.id for job in whole[2:]]


def test_a_finished_trial_whose_driver_died_before_it_heard_is_known(plan, tmp_path):
    agenda = Agenda(plan)
    job = agenda.take("0")
    facts = trial_facts(job, status="finished", objective=0.9, epochs=9)
    row = Measurement(dataset="leaves", protocol="linear", split="test", metric="top1", value=0.5)
    agenda.ledger.write(rows_table(facts, [row]))
    jobs = run(Agenda(remake(tmp_path)), lambda _: 0.1)
    assert [job.draw for job in jobs if job.stage == "search"] == [1, 2, 3, 4]
    assert {temperature(j) for j in jobs if j.role == "best"} == {temperature(job)}


@pytest.mark.parametrize("epoch", [3, 5])
def test_a_stop_that_nobody_asked_for_is_an_interruption(plan, tmp_path, epoch):
    agenda = Agenda(plan)
    job = agenda.take("0")
    agenda.end("0", {"epoch": epoch})
    assert agenda.ledger.listing().entries == ()
    assert Agenda(remake(tmp_path)).take("0").trial == job.trial


def test_failed_trials_are_rows_and_run_again_only_when_asked(plan, tmp_path):
    agenda = Agenda(plan)
    job = agenda.take("0")
    agenda.end("0", {"failed": "TrialFailed: not finite", "epoch": 1})
    second = agenda.take("1")
    agenda.end("1", {}, died=True)
    assert [failure.error for failure in agenda.tally.failures] == ["TrialFailed: not finite", DIED]
    calm = Agenda(remake(tmp_path))
    assert job.trial.id not in {other.trial.id for other in run(calm, temperature)}
    assert len(calm.tally.failures) == 2
    retried = run(Agenda(remake(tmp_path), retry_failed=True), temperature)
    assert [other.trial.id for other in retried] == [job.trial.id, second.trial.id] or {
        other.trial.id for other in retried[:2]
    } == {job.trial.id, second.trial.id}
    assert Agenda(remake(tmp_path)).is_done()


def test_a_damaged_ledger_file_is_measured_again(plan, tmp_path):
    first = run(Agenda(plan), temperature)
    path = next(plan.out.glob(f"ledger/{first[2].trial.id}.*"))
    path.write_bytes(path.read_bytes()[:200])
    again = run(Agenda(remake(tmp_path)), temperature)
    assert [job.trial.id for job in again] == [first[2].trial.id]
    assert Ledger(plan.out).read().problems == []


def test_force_in_one_sweep_leaves_the_others_rows(plan, tmp_path):
    run(Agenda(plan), temperature)
    assert Agenda(remake(tmp_path, name="other")).is_done()
    before = len(Ledger(plan.out).read("mine").frame)
    agenda = Agenda(remake(tmp_path, name="other"), force=True)
    agenda.take("0")  # and the process dies
    assert len(Ledger(plan.out).read("mine").frame) == before


def test_force_runs_everything_once_more(plan, tmp_path):
    first = run(Agenda(plan), temperature)
    again = run(Agenda(remake(tmp_path), force=True), temperature)
    assert [job.trial.id for job in again] == [job.trial.id for job in first]


def test_one_trial_under_two_names_runs_once(tmp_path):
    text = SWEEP.replace('"gamma.enabled" = false', '"gamma.enabled" = true')  # the baseline is the best itself
    plan = remake(tmp_path, text)
    jobs = run(Agenda(plan), temperature)
    assert len(jobs) == 5 + 4
    frame = Ledger(plan.out).read().frame.query("stage == 'confirm'")
    assert frame.groupby("configuration")["trial_id"].nunique().to_dict() == {
        "simclr": 2,
        "no gamma": 2,
        "random_init": 2,
    }


def test_poisoned_test_scores_choose_the_same_configuration(tmp_path):
    chosen = []
    for name, test in (("a", temperature), ("b", lambda job: 1 - temperature(job))):
        (tmp_path / name).mkdir()
        jobs = run(Agenda(remake(tmp_path / name)), lambda job: -abs(temperature(job) - 0.3), test)
        chosen.append([job.trial.id for job in jobs])
    assert chosen[0] == chosen[1]


def test_a_dry_run_shows_the_draws_that_come(plan):
    shown = list(preview(plan, "simclr", 3))
    assert not plan.out.exists()
    jobs = run(Agenda(plan), temperature)
    # the sampler has learned nothing before `startup` results
    assert [job.swept for job in jobs[:2]] == shown[:2]
    assert list(preview(plan, "simclr", 3)) == [job.swept for job in jobs[:3]]


def test_a_dry_run_times_each_candidate_and_what_is_not_trained_not_at_all(tmp_path, monkeypatch):
    text = SEVERAL + 'baselines = [{ name = "untrained", of = "plain", set = { "pretrain.epochs" = 0 } }]'
    steps = {True: 0.1, False: 0.2}  # seconds, by whether gamma is on
    monkeypatch.setattr("bench.forecast._seconds_per_step", lambda trial, _: steps[trial.config["gamma"]["enabled"]])
    file = StringIO()
    Console(file=file, width=400).print(forecast(remake(tmp_path, text)))
    said = file.getvalue().splitlines()[-1]
    # 9 epochs of 11 steps: 4 + 2 * 2 trials of 9.9 s, 1 + 2 trials of 19.8 s, and 2 of none; of the three draws of
    # "simclr" two end after 3 epochs, the last of the others goes on
    assert "about 2:05 of pretraining for 13 trials, 2:19 if none were pruned; per trial" in said
    assert "0:10 (simclr), 0:20 (plain), 0:00 (untrained), 0:10 (wide)" in said


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_small_space_is_tried_without_repetition(tmp_path, sampler):
    text = SWEEP.replace("{ log_uniform = [0.1, 1.0] }", "{ choice = [0.1, 0.2, 0.5] }").replace(
        "trials = 5", "trials = 4"
    )
    plan = remake(tmp_path, text, search={"sampler": sampler})
    shown = list(preview(plan, "simclr", 4))
    search = [job for job in run(Agenda(plan), temperature) if job.stage == "search"]
    assert [job.draw for job in search] == [0, 1, 2]  # the fourth repeats one: its result is known
    assert sorted(map(temperature, search)) == [0.1, 0.2, 0.5]
    assert [job.swept for job in search[:2]] == shown[:2]


def test_what_decides_a_result_is_in_the_id_and_nothing_else(plan, tmp_path):
    base = plan.search_trial("simclr", {"temperature": 0.2})
    same = remake(tmp_path, resources={"workers": 2}, search={"trials": 3}).search_trial("simclr", {"temperature": 0.2})
    assert same.id == base.id
    changes = [
        remake(tmp_path, pretrain={"epochs": 8}),
        remake(tmp_path, pretrain={"backbone": "resnet18"}),
        remake(tmp_path, pretrain={"dataset": "wings"}),
        remake(tmp_path, evaluate={"datasets": ["wings"]}),
        remake(tmp_path, search={"training_seed": 5}),
    ]
    trials = [changed.search_trial("simclr", {"temperature": 0.2}) for changed in changes]
    assert len({base.id, *(trial.id for trial in trials)}) == 6
    assert trials[3].pretrain_id == base.pretrain_id  # the encoder is the same: only the evaluation differs
    assert trials[4].configuration_id == base.configuration_id
    control = plan.confirm_jobs({"simclr": {"temperature": 0.2}})[2].trial
    longer = remake(tmp_path, pretrain={"epochs": 8}).confirm_jobs({"simclr": {"temperature": 0.2}})[2].trial
    assert control.id == longer.id


SEVERAL = """
title = "q?"
[pretrain]
dataset = "leaves"
epochs = 9
[candidates.simclr]
space = { temperature = { log_uniform = [0.1, 1.0] } }
[candidates.plain]
method = "simclr"
set = { "gamma.enabled" = false }
[candidates.wide]
method = "simclr"
space = { temperature = { log_uniform = [0.1, 1.0] } }
trials = 1
[search]
trials = 3
prune = { grace = 3 }
[evaluate]
datasets = ["leaves"]
[confirm]
seeds = [0, 1]
"""


def test_each_candidate_is_searched_and_confirmed(tmp_path):
    jobs = run(Agenda(remake(tmp_path, SEVERAL)), temperature)
    search = [(job.configuration, job.draw) for job in jobs if job.stage == "search"]
    # in turn, those with most draws left first; "wide" draws what "simclr" drew first: one trial, run once
    assert search == [("simclr", 0), ("simclr", 1), ("simclr", 2), ("plain", 0)]
    best = max((job for job in jobs[:3]), key=temperature)
    confirmed = {job.configuration: temperature(job) for job in jobs if job.stage == "confirm"}
    assert confirmed == {"simclr": temperature(best), "plain": 0.2, "wide": temperature(jobs[0]), "random_init": 0.0}
    again = Agenda(remake(tmp_path, SEVERAL))
    assert again.is_done()
    assert {again.best(name).value for name in ("simclr", "plain")} == {temperature(best), 0.2}


def test_the_version_that_was_asked_for_last_is_reported(tmp_path):
    run(Agenda(remake(tmp_path, SEVERAL)), temperature)
    path = tmp_path / "mine.toml"
    few = make_plan(load_sweep(str(path), only=["simclr"]), out=tmp_path / "out", cache=tmp_path / "cache")

    def shown() -> set[str]:
        frame = Ledger(tmp_path / "out").read().frame
        return set(frame[frame["sweep_id"] == of_sweep(frame, "mine")["sweep_id"].iloc[0]]["configuration"])

    assert run(Agenda(few), temperature) == []  # all of it is known
    assert shown() == {"simclr", "random_init"}
    before = Ledger(tmp_path / "out").read().frame.drop(columns="recorded_at")
    assert Agenda(remake(tmp_path, SEVERAL)).is_done()
    assert shown() == {"simclr", "plain", "wide", "random_init"}
    assert Ledger(tmp_path / "out").read().frame.drop(columns="recorded_at").equals(before)


def test_force_trains_an_encoder_once_for_all_that_share_it(tmp_path):
    agenda = Agenda(remake(tmp_path, DROPOUT), force=True)
    first = agenda.take("0")
    first.encoder.touch()
    finish(agenda, "0", first, 0.4)
    second = agenda.take("1")
    assert second.trial.pretrain_id == first.trial.pretrain_id
    assert first.encoder.exists()
    assert Agenda(remake(tmp_path, DROPOUT), force=True).take("0").trial == first.trial
    assert not first.encoder.exists()


DROPOUT = SWEEP.replace(
    "temperature = { log_uniform = [0.1, 1.0] }", '"finetune.dropout" = { choice = [0.1, 0.5] }'
).replace('datasets = ["leaves"]', 'datasets = ["leaves"]\nprotocols = ["linear", "finetune"]\nobjective = "finetune"')


def test_trials_that_share_an_encoder_do_not_train_it_at_the_same_time(tmp_path):
    agenda = Agenda(remake(tmp_path, DROPOUT))
    first = agenda.take("0")
    assert agenda.take("1") is None
    assert not agenda.is_done()
    finish(agenda, "0", first, 0.4)
    second = agenda.take("2")
    assert second.trial.id != first.trial.id
    assert second.trial.pretrain_id == first.trial.pretrain_id


def test_trials_that_share_an_encoder_run_together_once_it_is_there(tmp_path):
    agenda = Agenda(remake(tmp_path, DROPOUT))
    first = agenda.take("0")
    assert agenda.take("1") is None
    first.encoder.touch()
    second = agenda.take("2")
    assert second is not None
    assert second.trial.pretrain_id == first.trial.pretrain_id
