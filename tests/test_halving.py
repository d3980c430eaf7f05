"""Successive halving by the agenda, without Ray: who goes on from a rung, who waits there, who is pruned."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench.execution import trial_facts
from bench.job import Job
from bench.plan import make_plan
from bench.results.ledger import Ledger
from bench.results.schema import Measurement, rows_table
from bench.scheduling import agenda as agendas
from bench.scheduling import claims
from bench.scheduling.agenda import Agenda
from bench.scheduling.halving import SPARE, ranked
from bench.study import read_studies
from bench.sweep import Prune
from bench.sweepfile import load_sweep

SWEEP = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "leaves"
epochs = 10
[space]
temperature = { log_uniform = [0.1, 1.0] }
[search]
sampler = "random"
trials = 18
prune = { grace = 1, factor = 3 }
[evaluate]
datasets = ["leaves"]
[confirm]
seeds = []
"""
RUNGS = (1, 3, 9)

Score = Callable[[Job], float]


def begin(folder: Path, text: str = SWEEP, name: str = "mine", **how: Any) -> Agenda:
    """An agenda on what lies under `folder`, as a driver that is started there has it."""
    over = {"search": {"trials": how.pop("trials")}} if "trials" in how else {}
    path = folder / f"{name}.toml"
    path.write_text(text)
    return Agenda(make_plan(load_sweep(str(path), over=over), out=folder / "out", cache=folder / "cache"), **how)


class Tune:
    """Trains what an agenda hands out, `slots` at a time, an epoch of each in turn; checkpoints outlive it."""

    def __init__(self, agenda: Agenda, score: Score, slots: int = 1, trained: dict[str, int] | None = None) -> None:
        self.agenda, self.score, self.slots = agenda, score, slots
        self.trained = {} if trained is None else trained  # epochs by encoder
        self.epochs = 0  # of training, in all
        self.finished: list[Job] = []
        self._going: deque[tuple[str, Job]] = deque()
        self._count = 0

    def drive(self, epochs: int = 10**6) -> "Tune":
        """Go on for a number of epochs, or to the end."""
        last = self.epochs + epochs
        while self.epochs < last:
            while len(self._going) < self.slots and (job := self.agenda.take(f"{id(self)} {self._count}")) is not None:
                self._going.append((f"{id(self)} {self._count}", job))
                self._count += 1
            if not self._going:
                return self  # nothing is left, or another driver has it
            self._train(*self._going.popleft())
        return self

    def _train(self, key: str, job: Job) -> None:
        epoch = self.trained.get(job.trial.pretrain_id, 0)
        if epoch in job.rungs and not self._passes(key, job, epoch):  # as pretraining does where it resumes
            return
        if epoch < job.trial.training.epochs and not job.encoder.exists():
            epoch += 1
            self.epochs += 1
            self.trained[job.trial.pretrain_id] = epoch
            if epoch not in job.rungs or self._passes(key, job, epoch):
                self._going.append((key, job))
            return
        job.folder.mkdir(parents=True, exist_ok=True)
        job.encoder.touch()
        facts = trial_facts(job, status="finished", objective=self.score(job), epochs=10, started_at=datetime.now(UTC))
        row = Measurement(dataset="leaves", protocol="linear", split="test", metric="top1", value=0.5, samples=10)
        self.agenda.ledger.write(rows_table(facts, [row]))
        self.agenda.end(key, {"finished": True, "objective": self.score(job), "epoch": 10})
        self.finished.append(job)

    def _passes(self, key: str, job: Job, epoch: int) -> bool:
        if self.agenda.at_rung(key, epoch, self.score(job) * epoch / 10):
            return True
        self.agenda.end(key, {"epoch": epoch})
        return False


def temperature(job: Job) -> float:
    return float(job.swept["temperature"])


def ended(folder: Path) -> dict[str, int]:
    """How many trials ended how."""
    counts: dict[str, int] = Ledger(folder / "out").read().frame.drop_duplicates("trial_id")["status"].value_counts()
    return dict(counts)


@pytest.mark.parametrize(
    ("count", "factor", "before", "after"),
    [(1, 3, 0, 1), (2, 3, 0, 1), (3, 3, 1, 1), (4, 3, 1, 2), (18, 3, 6, 6), (10, 2.5, 4, 4), (3, 1.1, 2, 3)],
)
def test_one_in_factor_goes_on_rounded_up_only_when_no_draw_is_to_come(count, factor, before, after):
    prune = Prune(factor=factor)
    assert prune.places(count, over=False) == before
    assert prune.places(count, over=True) == after


def test_of_equals_the_earlier_is_better():
    assert ranked({0: 0.1, 2: 0.2, 1: 0.2}) == [1, 2, 0]


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_the_best_third_goes_on_from_each_rung_and_what_waited_in_vain_is_pruned(tmp_path, slots):
    agenda = begin(tmp_path)
    tune = Tune(agenda, temperature, slots).drive()
    assert agenda.is_done()
    frame = agenda.ledger.read().frame.drop_duplicates("trial_id").set_index("draw").sort_index()
    order = sorted(range(18), key=lambda draw: -frame["param.temperature"][draw])
    finished = [job.draw for job in tune.finished]
    assert order[0] in finished
    assert len(finished) == 1
    assert agenda.tally.pruned == 17
    whole = 18 + 6 * 2 + 2 * 6 + 1
    assert whole <= tune.epochs <= whole + (slots - 1) * 2  # who trains beside others does not know what they reach
    assert tune.epochs == whole or slots > 1
    assert agenda.plan.sweep.search.prune.share(10, 18) == whole / 180
    assert set(frame["status"].drop(finished)) == {"pruned"}
    assert set(frame["epochs"].drop(finished)) == {1, 3, 9}
    reached = frame.query("epochs == 1")["objective"]
    assert reached.tolist() == pytest.approx((frame["param.temperature"] / 10)[reached.index].tolist())
    assert agenda.best("simclr").number == order[0]


def test_new_draws_come_before_those_that_wait_and_lower_rungs_before_higher_ones(tmp_path):
    agenda = begin(tmp_path, trials=9)
    taken = []
    for key in map(str, range(9)):
        taken.append(agenda.take(key).draw)
        assert not agenda.at_rung(key, 1, 0.1 * int(key) if key != "8" else 0.0)
        agenda.end(key, {"epoch": 1})
    assert taken == list(range(9))
    for key, draw in (("9", 7), ("10", 6), ("11", 5)):
        job = agenda.take(key)
        assert (job.draw, job.rungs) == (draw, (3, 9))
        if draw > 5:
            assert not agenda.at_rung(key, 3, 0.1 * draw)  # a third one is still to come there
            agenda.end(key, {"epoch": 3})
    assert agenda.take("12") is None
    assert not agenda.is_done()


def test_a_draw_that_can_no_longer_be_among_the_best_is_pruned_at_once_but_for_some_spare_ones(tmp_path):
    agenda = begin(tmp_path, trials=36)  # twelve of which go on from the first rung
    for number in range(12 + SPARE + 2):
        agenda.take(str(number))
        agenda.at_rung(str(number), 1, 0.5 - 0.01 * number)
        agenda.end(str(number), {"epoch": 1})
    frame = agenda.ledger.read().frame
    assert frame[["status", "draw"]].values.tolist() == [["pruned", 12 + SPARE]]
    assert set(agenda._draws["simclr"].halving.waiting) == {*range(12 + SPARE), 12 + SPARE + 1}  # the last one just now


def test_a_draw_that_would_come_next_does_not_stop(tmp_path):
    agenda = begin(tmp_path, trials=3)
    for key, objective, goes_on in (("0", 0.5, False), ("1", 0.4, False), ("2", 0.6, True)):
        agenda.take(key)
        assert agenda.at_rung(key, 1, objective) == goes_on
        agenda.end(key, {"epoch": 1}) if not goes_on else None
    assert agenda.at_rung("2", 1, 0.0)  # its worker was started again and says it once more
    assert agenda._draws["simclr"].made()[2].intermediate_values == {1: 0.6}


@pytest.mark.parametrize("trials", [1, 2, 4])
def test_however_few_draws_there_are_one_is_trained_to_the_end(tmp_path, trials):
    tune = Tune(begin(tmp_path, trials=trials), temperature).drive()
    assert len(tune.finished) >= 1
    drawn = [trial.params["temperature"] for trial in tune.agenda._draws["simclr"].made()]
    assert max(map(temperature, tune.finished)) == max(drawn)
    assert ended(tmp_path).get("pruned", 0) == trials - len(tune.finished)


@pytest.mark.parametrize("epochs", [1, 7, 19, 30, 45])
def test_a_search_that_is_interrupted_ends_like_one_that_is_not(tmp_path, epochs):
    (tmp_path / "calm").mkdir()
    calm = Tune(begin(tmp_path / "calm"), temperature).drive()
    (tmp_path / "cut").mkdir()
    trained: dict[str, int] = {}
    first = begin(tmp_path / "cut")
    cut = Tune(first, temperature, trained=trained).drive(epochs)
    first._lease.release()  # the process dies
    again = begin(tmp_path / "cut")
    rest = Tune(again, temperature, trained=trained).drive()
    assert again.best("simclr").params == calm.agenda.best("simclr").params
    assert cut.epochs + rest.epochs <= calm.epochs + 9  # no epoch twice; the one in training may have waited instead
    assert ended(tmp_path / "cut")["finished"] == len(cut.finished) + len(rest.finished)
    assert sum(ended(tmp_path / "cut").values()) == 18
    assert begin(tmp_path / "cut").is_done()


def test_what_was_pruned_stays_so_for_its_sweep_and_is_remembered_when_more_is_asked_for(tmp_path):
    first = Tune(begin(tmp_path), temperature).drive()
    pruned = first.agenda.tally.pruned
    more = begin(tmp_path, trials=21)
    assert len(more._draws["simclr"].halving._rungs()[1]) == 18
    second = Tune(more, lambda _: 0.0).drive()  # worse than all that came before
    assert second.finished == []
    assert ended(tmp_path) == {"pruned": pruned + 3, "finished": len(first.finished)}
    assert second.epochs == 3
    other = begin(tmp_path, name="other")
    assert Tune(other, temperature, trained=first.trained).drive().agenda.tally.reused == len(first.finished)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_sampler_learns_from_draws_that_wait(tmp_path, sampler):
    """The fifth draw depends on what the four before it reached, though none of them has ended."""
    text = SWEEP.replace('sampler = "random"', f'sampler = "{sampler}"\nstartup = 3').replace(
        "factor = 3", "factor = 9"
    )
    found = []
    for name, sign in (("up", 1.0), ("down", -1.0)):
        (tmp_path / name).mkdir()
        agenda = begin(tmp_path / name, text, trials=100)
        for key in "0123":
            job = agenda.take(key)
            assert not agenda.at_rung(key, 1, sign * temperature(job))
            agenda.end(key, {"epoch": 1})
        assert {trial.state.name for trial in read_studies(agenda.plan)["simclr"].trials} == {"RUNNING"}
        found.append(temperature(agenda.take("4")))
    assert found[0] > found[1] or (sampler == "gp" and found[0] != found[1])  # gp explores first


SEVERAL = """
title = "q?"
[pretrain]
dataset = "leaves"
epochs = 9
[candidates.simclr]
space = { temperature = { log_uniform = [0.1, 0.9] } }
[candidates.wide]
method = "simclr"
space = { temperature = { log_uniform = [0.1, 1.0] } }
[search]
trials = 3
prune = { grace = 3 }
[evaluate]
datasets = ["leaves"]
[confirm]
seeds = []
"""


def test_each_candidate_is_pruned_among_its_own_draws(tmp_path):
    agenda = begin(tmp_path, SEVERAL)
    good = Tune(agenda, lambda job: 0.9 if job.configuration == "simclr" else 0.1, slots=2).drive()
    assert [job.configuration for job in good.finished].count("wide") == 1
    assert agenda.tally.pruned == 4


def test_a_draw_that_waits_for_one_candidate_is_compared_for_another_from_its_checkpoint(tmp_path):
    agenda = begin(tmp_path, SEVERAL.replace("[0.1, 0.9]", "[0.1, 1.0]"))  # both draw the same
    tune = Tune(agenda, temperature).drive()
    frame = agenda.ledger.read().frame.drop_duplicates(["trial_id", "configuration"])
    assert frame["trial_id"].nunique() == 3
    assert sorted(frame["configuration"]) == ["simclr"] * 3 + ["wide"] * 3
    assert tune.epochs <= 3 * 3 + 2 * 6  # no encoder is trained twice


SHARED = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "leaves"
epochs = 10
[space]
"finetune.dropout" = { choice = [0.1, 0.3, 0.5] }
[search]
trials = 3
prune = { grace = 1, factor = 3 }
[evaluate]
datasets = ["leaves"]
protocols = ["linear", "finetune"]
objective = "finetune"
[confirm]
seeds = []
"""


def test_draws_that_share_an_encoder_all_end_once_it_is_trained(tmp_path):
    tune = Tune(begin(tmp_path, SHARED), lambda _: 0.5, slots=2).drive()  # the rungs judge the encoder alone
    assert len(tune.finished) == 3
    assert tune.epochs == 10


def test_where_the_best_fails_the_next_best_goes_on(tmp_path):
    agenda = begin(tmp_path, trials=3)
    for key in "012":
        agenda.take(key)
        agenda.at_rung(key, 1, 0.3 - 0.1 * int(key))
        agenda.end(key, {"epoch": 1})
    for key, draw in (("3", 0), ("4", 1)):
        assert agenda.take(key).draw == draw
        agenda.end(key, {"epoch": 2, "failed": "TrialFailed: on purpose"})
    agenda.interrupted = True
    assert Tune(begin(tmp_path, trials=3), temperature, trained=defaultdict(lambda: 1)).drive().finished[0].draw == 2


def test_after_ctrl_c_nothing_is_pruned_that_may_go_on(tmp_path):
    agenda = begin(tmp_path, trials=3)
    for key in "012":
        agenda.take(key)
    for key in "01":
        agenda.at_rung(key, 1, 0.3)
        agenda.end(key, {"epoch": 1})
    agenda.end("2", {"epoch": 0})
    assert agenda.interrupted
    agenda.is_done()
    assert agenda.ledger.listing().entries == ()


def test_a_draw_that_another_driver_has_ended_may_come_to_its_rung_here(tmp_path):
    agenda = begin(tmp_path, trials=3)
    agenda.take("0")
    agenda._draws["simclr"].study.tell(0, 0.5)
    assert agenda.at_rung("0", 1, 0.3)


def test_a_trial_that_runs_keeps_its_claim_while_another_candidates_draw_of_it_is_pruned(tmp_path):
    agenda = begin(tmp_path, SEVERAL.replace("[0.1, 0.9]", "[0.1, 1.0]"))
    job = agenda.take("0")
    agenda._release(job)
    assert job.folder in claims._held
    agenda.end("0", {"epoch": 0})
    assert job.folder not in claims._held


def test_two_drivers_of_one_sweep_share_their_rungs(tmp_path, monkeypatch):
    """What one has waiting, the other compares with; each draw ends once, and neither prunes what the other trains."""
    monkeypatch.setattr(agendas, "POLL", 0.01)
    trained: dict[str, int] = {}
    first, second = begin(tmp_path), begin(tmp_path)
    one = Tune(first, temperature, trained=trained)
    two = Tune(second, temperature, trained=trained)
    claimed: tuple[dict[Path, int], ...] = ({}, {})  # each driver's own, as in processes of their own
    for _ in range(100):
        for tune, mine in zip((one, two), claimed, strict=True):
            monkeypatch.setattr(claims, "_held", mine)
            tune.drive(1)
        time.sleep(0.01)
    assert first.is_done()
    assert second.is_done()
    assert 1 <= len(one.finished) + len(two.finished) <= 5
    assert one.finished != []
    assert sum(ended(tmp_path).values()) == 18
    assert first.best("simclr").number == second.best("simclr").number
    ids = [job.trial.id for job in (*one.finished, *two.finished)]
    assert len(ids) == len(set(ids))
