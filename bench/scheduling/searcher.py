"""The agenda as Tune sees it: a search algorithm that hands out jobs and hears how they end."""

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from bench.scheduling.agenda import Agenda
from bench.scheduling.events import emit


class AgendaSearcher(Searcher):
    """Tune asks it for trials. Its state is the study and the ledger, so Tune's own snapshots of it are empty."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__(metric="objective", mode="max")
        self.agenda = agenda
        self._rungs: dict[str, dict[int, float]] = {}

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
        if "loss" in result:
            emit("epoch", trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Pass on how a trial ended."""
        last = result or {}
        if "rung_objective" in last:  # the result that a trial is stopped at comes here alone
            self._rungs.setdefault(trial_id, {})[int(last["epoch"])] = float(last["rung_objective"])
        self.agenda.end(trial_id, last, self._rungs.pop(trial_id, {}), died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
