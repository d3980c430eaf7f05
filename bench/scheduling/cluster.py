"""Starting, joining and leaving Ray, silently."""

import logging
import os
import secrets
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from bench.errors import BadInput
from bench.plan import Hardware

CONNECT_SECONDS = 10
ACCELERATOR = "accelerator_type:"  # of Ray's resource that nodes with a type of GPU have one of
OBJECT_STORE_BYTES = 200 * 2**20  # trials pass configurations and numbers, never images
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",  # trials run in a second thread, whose own arena would keep less (see bench.memory)
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # a worker that died is shown as a trial that goes on or failed
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # the default of 2 s holds fast epochs up
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the ledger is the log
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the objective is there at rungs only
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # study and ledger are the state of a sweep, not Tune's snapshot
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@dataclass(frozen=True)
class Cluster:
    """What the connected Ray has: the resources of each node by Ray's names ("CPU", "GPU", "accelerator_type:A100")."""

    nodes: tuple[Mapping[str, float], ...]

    def total(self, kind: str) -> float:
        """How much of a resource there is in all."""
        return sum(node.get(kind, 0.0) for node in self.nodes)

    @property
    def cpus(self) -> float:
        """CPU cores in all."""
        return self.total("CPU")

    @property
    def gpus(self) -> float:
        """GPUs in all."""
        return self.total("GPU")

    @property
    def accelerators(self) -> tuple[str, ...]:
        """The types of GPU that there are."""
        return tuple(
            sorted(
                {name.removeprefix(ACCELERATOR) for node in self.nodes for name in node if name.startswith(ACCELERATOR)}
            )
        )

    @property
    def hardware(self) -> Hardware:
        """A cluster of many machines is taken to have GPUs with bf16 and CPUs without."""
        return Hardware(self.gpus, gpu_bf16=True, cpu_bf16=False)


@contextmanager
def connect(address: str | None, *, cpus: int | None = None) -> Iterator[Cluster]:
    """Join the Ray at `address`; without one start a local Ray and end it afterwards."""
    _prepare_environment()
    import ray

    local = address in (None, "", "local")
    if local and not os.environ.get("RAY_AUTH_MODE"):
        # A token for this Ray alone; else Ray writes one under the home folder.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    _silence()
    try:
        if local:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            must_answer(str(address))
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises bare ones too
        where = "a local Ray could not be started" if local else f"no Ray answers at {address!r}"
        raise BadInput(f"{where}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    try:
        yield Cluster(tuple(node["Resources"] for node in ray.nodes() if node["Alive"]))
    finally:
        ray.shutdown()


def must_answer(address: str) -> None:
    """Raise a ConnectionError where nothing listens: Ray itself would try again for many minutes."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=CONNECT_SECONDS).close()


def prepare_client() -> None:
    """Prepare this process for talking to a cluster: a token that is set or kept is used, as by Ray's own commands."""
    _prepare_environment()
    _silence()
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _prepare_environment() -> None:
    """Set what Ray reads from the environment; workers inherit it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def _silence() -> None:
    """Ray and Tune print nothing of their own: progress and errors are shown by bench."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"ray\..*")
