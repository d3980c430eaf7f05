"""Where a sweep's curves go beside the ledger: TensorBoard files always, W&B and MLflow through Ray Tune's callbacks.

Tune keeps trial folders under its own storage, which is thrown away; everything here lies under the results folder.
Only scalars travel, one set per epoch. A tracker that fails is dropped with a note: it never ends a sweep.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.logger import LoggerCallback

from bench import mirror
from bench.errors import BadInput
from bench.job import Job, label

SCALARS = ("loss", "images_per_second", "rung_objective", "objective")
STEP = "training_iteration"  # Tune's count of reports, which Ray's callbacks take for the step
dropped: list[str] = []  # a line per tracker that failed; of the module, because Tune pickles its callbacks


def trackers(out: Path, sweep: str, names: Sequence[str]) -> list[LoggerCallback]:
    """Tune's callbacks for a sweep whose results lie under `out`; `dropped` then says which failed."""
    dropped.clear()
    made: dict[str, LoggerCallback] = {"TensorBoard": TensorBoard(out / "tensorboard")}
    for name in names:
        made[f"--log-to {name}"] = _wandb(out, sweep) if name == "wandb" else _mlflow(out, sweep)
    return [Guarded(name, callback) for name, callback in made.items()]


def folder_name(job: Job) -> str:
    """A trial's folder under `tensorboard/`: what people call it, and the start of its id."""
    return f"{job.sweep}/{re.sub('[^A-Za-z0-9._-]+', '_', label(job))}-{job.trial.id[:8]}"


def scalars(result: Mapping[str, Any]) -> dict[str, float]:
    """What is logged of one report."""
    return {name: float(result[name]) for name in SCALARS if isinstance(result.get(name), int | float)}


def facts(job: Job) -> dict[str, Any]:
    """A trial's configuration for a tracker: what decides its result, and its place in the sweep."""
    kept = {"method": job.trial.method, "seed": job.trial.seed, "trial_id": job.trial.id, "stage": job.stage}
    training = {f"pretrain.{name}": value for name, value in job.trial.training.model_dump(mode="json").items()}
    return kept | training | {f"method.{name}": value for name, value in _flat(job.trial.config).items()}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _job(trial: Any) -> Job:
    return Job.model_validate_json(trial.config["job"])


class TensorBoard(LoggerCallback):
    """Event files of scalars per epoch, under `FOLDER/SWEEP/TRIAL`; a resumed trial adds to its own folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, Any] = {}

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Write one epoch's scalars."""
        from tensorboardX import SummaryWriter

        values = scalars(result)
        if not values:
            return
        if trial.trial_id not in self._writers:
            self._writers[trial.trial_id] = SummaryWriter(str(self.folder / folder_name(_job(trial))))
        for name, value in values.items():
            self._writers[trial.trial_id].add_scalar(name, value, global_step=int(result.get("epoch", iteration)))
        self._writers[trial.trial_id].flush()

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Close the trial's file."""
        writer = self._writers.pop(trial.trial_id, None)
        if writer is not None:
            writer.close()
            mirror.store_folder(Path(writer.logdir))

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_writers": {}}  # Tune pickles its callbacks


class Guarded(LoggerCallback):
    """A callback that is dropped, with one note, when it fails: a tracker that is down ends no sweep."""

    def __init__(self, name: str, inner: LoggerCallback) -> None:
        self.name, self.inner = name, inner
        self.working = True

    def _pass_on(self, hook: str, *arguments: Any, **named: Any) -> None:
        if not self.working:
            return
        try:
            getattr(self.inner, hook)(*arguments, **named)
        except Exception as error:  # whatever a tracker's client raises
            self.working = False
            first = (str(error).splitlines() or [""])[0]
            dropped.append(f"{self.name} was dropped: {type(error).__name__}: {first}")

    def setup(self, *arguments: Any, **named: Any) -> None:
        """Tell the tracker that the sweep begins."""
        self._pass_on("setup", *arguments, **named)

    def log_trial_start(self, trial: Any) -> None:
        """Tell it of a trial that begins."""
        self._pass_on("log_trial_start", trial)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        """Tell it of an epoch."""
        self._pass_on("log_trial_result", iteration, trial, result)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Tell it of a trial that ended."""
        self._pass_on("log_trial_end", trial, failed=failed)

    def on_experiment_end(self, trials: list[Any], **named: Any) -> None:
        """Let it finish its uploads."""
        self._pass_on("on_experiment_end", trials, **named)


def _wandb(out: Path, sweep: str) -> LoggerCallback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    class Wandb(WandbLoggerCallback):
        """Ray's own, with names and configurations that people know, and its files beside the results."""

        def log_trial_start(self, trial: Any) -> None:
            job = _job(trial)
            trial.init_local_path()
            # An id of W&B's own making: a trial that is run again is a run of its own there.
            self.kwargs |= {"id": None, "name": label(job), "config": facts(job), "tags": [job.stage]}
            super().log_trial_start(trial)

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            if values := scalars(result):
                super().log_trial_result(iteration, trial, values | {STEP: result[STEP]})

    (out / "wandb").mkdir(parents=True, exist_ok=True)
    return Wandb(project=os.environ.get("WANDB_PROJECT", "bench"), group=sweep, dir=str(out))


def _mlflow(out: Path, sweep: str) -> LoggerCallback:
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # its database speaks of its tables
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Mlflow(MLflowLoggerCallback):
        """Ray's own, with names and configurations that people know."""

        def log_trial_start(self, trial: Any) -> None:
            job = _job(trial)
            if trial not in self._trial_runs:
                run = self.mlflow_util.start_run(tags=dict(self.tags), run_name=label(job))
                self._trial_runs[trial] = run.info.run_id
                self.mlflow_util.log_params(run_id=run.info.run_id, params_to_log=facts(job))

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            if values := scalars(result):
                super().log_trial_result(iteration, trial, values | {STEP: result[STEP]})

    where = os.environ.get("MLFLOW_TRACKING_URI")
    if not where and mirror.is_mirrored(out):
        raise BadInput(f"--log-to mlflow: its database cannot lie at {mirror.address(out)}: set MLFLOW_TRACKING_URI")
    where = where or f"sqlite:///{out / 'mlflow.db'}"
    return Mlflow(tracking_uri=where, experiment_name=sweep)
