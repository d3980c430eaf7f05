"""How a trial runs inside Ray: in the reused Tune actor itself, or as a Ray Train run that the trial launches.

Both call the same `run_job`; only the report differs. A several-worker trial is a driver without a CPU of its
own, so that trials cannot starve each other's workers. When Tune stops it, `cleanup` aborts the inner run
before the actor dies: otherwise its placement group would outlive it and hold its CPUs for ever (Ray issue
54305). That hook uses private parts of Ray 2.60, which is why the version is bounded; `tests/test_scheduling.py`
guards them.
"""

import contextlib
import os
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.exceptions import RayTrainError
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.trainable import wrap_function

from bench import mirror
from bench.errors import BenchError
from bench.execution import run_job
from bench.job import Job

# A slot that every head node has and that takes no CPU away from a trial's workers.
DRIVER_SLOT = {"node:__internal_head__": 0.001}
RETRIES = 2  # after a worker process died; each goes on from the last checkpoint
ABORT_SECONDS = 20
KEEP_CLEANER = "BENCH_KEEP_CLEANER"  # set to 1 where a dashboard runs: Ray's own cleaner then works too


def failed(job: Job, error: Exception) -> dict[str, Any]:
    """Write the exception in flight to the trial's folder and return the report that says so."""
    with contextlib.suppress(OSError):  # a full disk may be the very error
        job.folder.mkdir(parents=True, exist_ok=True)
        path = job.folder / "error.txt"
        path.write_text(traceback.format_exc(), encoding="utf-8")
        mirror.stored(path)
    first = str(error).strip().splitlines() or [""]
    return {"failed": f"{type(error).__name__}: {first[0]}", "epoch": 0}


def _job(config: dict[str, Any]) -> Job:
    """The job that Tune was given; a method of the user's own is found where the driver found it."""
    if config["path"] not in sys.path:
        sys.path.append(config["path"])  # last: a file named like a module of the standard library hides nothing
    return Job.model_validate_json(config["job"])


def lone_trial(config: dict[str, Any]) -> None:
    """Run a one-worker trial in this Tune actor, which the next trial uses again."""
    job = _job(config)
    device = torch.device("cuda" if config["gpus"] else "cpu")
    try:
        run_job(job, ray.tune.report, device)
    except Exception as error:  # a trial that fails is a row, not the end of the sweep
        ray.tune.report(failed(job, error))


def worker(config: dict[str, Any]) -> None:
    """Run one of the workers of a trial; Ray Train has set up the process group."""
    job = _job(config)
    run_job(job, ray.train.report, ray.train.torch.get_device())


def shared_trial(config: dict[str, Any]) -> None:
    """Run a trial of several workers: launch Ray Train and wait."""
    job = _job(config)
    if job.workers == 1:
        # A control inside a sweep of several workers trains nothing: no process group is needed.
        lone_trial(config)
        return
    trainer = AbortableTrainer(
        worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.workers if config["fewest"] == job.workers else (config["fewest"], job.workers),
            use_gpu=config["gpus"] > 0,
            resources_per_worker=config["amounts"],
        ),
        run_config=ray.train.RunConfig(
            name=ray.tune.get_context().get_trial_id(),
            # Only its controller, on this node, reads it; on the driver's machine it goes with the driver's scratch.
            storage_path=str(Path(tempfile.gettempdir(), config["scratch"], "train")),
            callbacks=[TuneReportCallback()],
            failure_config=ray.train.FailureConfig(max_failures=RETRIES, controller_failure_limit=2),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        ray.tune.report(failed(job, _cause(error)))


def _cause(error: Exception) -> Exception:
    """A worker's own exception inside Ray Train's error, not that of one that felt it; else the error itself."""
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values()) or [error]
    return next(filter(is_final, failures), failures[0])


def is_final(error: Exception) -> bool:
    """Whether a worker raised this and would raise it again; false where it died, or felt another one's death."""
    # A lost peer is a RuntimeError of the process group, or an error of the network.
    passing = (RuntimeError, OSError, ray.exceptions.RayError, RayTrainError)
    return isinstance(error, BenchError) or not isinstance(error, passing)


class WorkersDied(DefaultFailurePolicy):
    """Start workers again that died, as Ray Train does, but not those that failed: that is a failed trial, at once."""

    def make_decision(self, training_failed_error: Any) -> FailureDecision:
        """Decide what becomes of the run."""
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(is_final(error) for error in failures.values()):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class AbortableTrainer(TorchTrainer):
    """A TorchTrainer whose controller can be aborted from another thread, with two helper actors fewer."""

    def _create_default_callbacks(self) -> list[Any]:
        dropped: tuple[type, ...] = () if self.datasets else (DatasetsCallback,)
        if os.environ.get(KEEP_CLEANER) != "1":
            dropped += (PlacementGroupCleanerCallback,)
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, dropped)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = WorkersDied(self.run_config.failure_config)
        environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        controller = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": environment})(
            TrainController
        ).remote(**arguments)
        INNER.started(controller)
        try:
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())
        finally:
            INNER.ended()


class _Inner:
    """The Ray Train run inside this process's trial, if there is one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._controller: Any = None
        self._stopped = False

    def started(self, controller: Any) -> None:
        with self._lock:
            self._controller = controller
            late = self._stopped
        if late:  # the stop came while the controller was starting
            self.stop()

    def ended(self) -> None:
        with self._lock:
            self._controller = None

    def stop(self) -> None:
        """Abort the run: its workers end and its placement group is removed."""
        with self._lock:
            self._stopped = True
            controller, self._controller = self._controller, None
        if controller is None:
            return
        try:
            ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
        except ray.exceptions.RayActorError:
            pass  # abort ends with the actor's own exit
        except ray.exceptions.RayError:
            ray.kill(controller)


INNER = _Inner()


def stop_inner() -> None:
    """Abort the inner run of this process; found by name, because Tune pickles the class below by value."""
    INNER.stop()


def shared_trainable(resources: dict[str, float]) -> Any:
    """The Tune trainable of trials with several workers."""
    base = wrap_function(shared_trial)

    class SharedTrial(base):  # type: ignore[misc, valid-type]
        """Ends its inner run before it is terminated, and is never reused."""

        def cleanup(self) -> None:
            stop_inner()
            base.cleanup(self)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return False

    SharedTrial.__name__ = shared_trial.__name__
    return ray.tune.with_resources(SharedTrial, resources)
