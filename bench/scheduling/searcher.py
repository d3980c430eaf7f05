"""The agenda as Tune sees it: a search algorithm that hands out jobs and hears how they end, and a scheduler."""

from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from bench.scheduling.agenda import Agenda
from bench.scheduling.events import emit


class AgendaSearcher(Searcher):
    """Tune asks it for trials. Its state is the study and the ledger, so Tune's own snapshots of it are empty."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__(metric="objective", mode="max")
        self.agenda = agenda

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next job, None while there is none yet, or FINISHED."""
        job = self.agenda.take(trial_id)
        if job is not None:
            return {"job": job.model_dump_json()}
        return str(Searcher.FINISHED) if self.agenda.is_done() else None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass an epoch on."""
        for text in result.get("notes", ()):
            self.agenda.note(trial_id, text)
        if "loss" in result:
            emit("epoch", trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on how a trial ended; the result that it is stopped at comes here alone."""
        last = result or {}
        for text in last.get("notes", ()):
            self.agenda.note(trial_id, text)
        self.agenda.end(trial_id, last, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Rungs(FIFOScheduler):
    """Stops a trial at a rung where the agenda has it wait: when it goes on, it is a new trial to Tune."""

    def __init__(self, searcher: AgendaSearcher) -> None:
        super().__init__()
        self.searcher = searcher  # Tune pickles its schedulers, and a searcher of ours without its agenda

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether a trial goes on."""
        if "rung_objective" not in result:
            return str(TrialScheduler.CONTINUE)
        rung = int(result["epoch"]), float(result["rung_objective"])
        goes_on = self.searcher.agenda.at_rung(trial.trial_id, *rung)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)
