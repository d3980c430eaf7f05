"""The agenda as Tune sees it: a search algorithm that hands out jobs and hears how they end, and its pruner."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from bench.scheduling.agenda import Agenda
from bench.scheduling.events import emit
from bench.sweep import Prune

MOST_EPOCHS = 10**6


class AgendaSearcher(Searcher):
    """Tune asks it for trials. Its state is the study and the ledger, so Tune's own snapshots of it are empty."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__(metric="objective", mode="max")
        self.agenda = agenda
        self._rungs: dict[str, dict[int, float]] = {}
        self.pruned: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job, None while there is none yet, or FINISHED."""
        job = self.agenda.take(trial_id)
        if job is not None:
            return {"job": job.model_dump_json()}
        return str(Searcher.FINISHED) if self.agenda.is_done() else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch on, and remember the objective at a rung."""
        if "rung_objective" in result:
            self._rungs.setdefault(trial_id, {})[int(result["epoch"])] = float(result["rung_objective"])
        for text in result.get("notes", ()):
            self.agenda.note(trial_id, text)
        if "loss" in result:
            emit("epoch", trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on how a trial ended."""
        last = result or {}
        for text in last.get("notes", ()):
            self.agenda.note(trial_id, text)
        if "rung_objective" in last:  # the result that a trial is stopped at comes here alone
            self._rungs.setdefault(trial_id, {})[int(last["epoch"])] = float(last["rung_objective"])
        self.agenda.end(trial_id, last, self._rungs.pop(trial_id, {}), died=error, pruned=trial_id in self.pruned)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Pruner(FIFOScheduler):
    """Asynchronous successive halving on the objective at the rungs, for each candidate among its own draws.

    It tells the searcher whom it stops: Tune ends a pruned and an interrupted trial alike.
    """

    def __init__(self, searcher: AgendaSearcher, prune: Prune) -> None:
        super().__init__()
        self.searcher = searcher
        self._halving = {name: self._begun(name, prune) for name in searcher.agenda.plan.sweep.candidates}

    def _begun(self, candidate: str, prune: Prune) -> ASHAScheduler:
        halving = ASHAScheduler(
            time_attr="epoch",
            metric="rung_objective",
            mode="max",
            max_t=MOST_EPOCHS,  # trials say where their own rungs are, all before their last epoch
            grace_period=prune.grace,
            reduction_factor=prune.factor,
        )
        # A search that goes on remembers what its earlier draws reached; guarded by a test, since it is Ray's own.
        for draw, rungs in self.searcher.agenda.earlier_rungs(candidate).items():
            for epoch, objective in sorted(rungs.items()):
                halving._brackets[0].on_result(SimpleNamespace(trial_id=f"draw {draw}"), epoch, objective)
        return halving

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        halving = self._halving.get(self.searcher.agenda.candidate(trial.trial_id))
        if halving is None or "rung_objective" not in result:
            return str(TrialScheduler.CONTINUE)
        if trial.trial_id not in halving._trial_info:
            halving.on_trial_add(tune_controller, trial)
        action = str(halving.on_trial_result(tune_controller, trial, result))
        if action == TrialScheduler.STOP:
            self.searcher.pruned.add(trial.trial_id)
        return action
