"""A job on a Ray cluster, seen from here: start it, follow it, stop it through Ray's Jobs API.

Ray reads its token where it always does (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, a file under the home folder) and sends
it as a header; bench never handles it.
"""

import asyncio
import logging
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadInput, suggestion
from bench.shipment import Shipment

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_SECONDS = 0.5
STOPPED_CODE = 130
ANSWER_SECONDS = 5


@dataclass(frozen=True)
class Ended:
    """How a job ended; `code` is 0 where it succeeded."""

    status: str
    code: int
    message: str


class JobServer:
    """The Jobs API of one cluster."""

    def __init__(self, client: Any, address: str) -> None:
        self.client, self.address = client, address

    def start(self, shipment: Shipment) -> str:
        """Send a job; returns its id."""
        name = f"{re.sub('[^A-Za-z0-9]+', '-', shipment.label).strip('-')}-{secrets.token_hex(4)}"
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "bench.zip"
            archive.write_bytes(shipment.archive)
            with _said(self.address):
                self.client.submit_job(
                    entrypoint=shipment.entrypoint,
                    submission_id=name,
                    runtime_env={"working_dir": str(archive), "env_vars": dict(shipment.environment)},
                    metadata={"sweep": shipment.label},
                )
        return name

    def known(self, name: str) -> str:
        """The id itself; raises BadInput with the nearest one where the cluster has no such job."""
        names = [job.submission_id for job in self._jobs() if job.submission_id]
        if name not in names:
            raise BadInput(f"{self.address} has no job {name!r}{suggestion(name, names)}")
        return name

    def output(self, name: str) -> Iterator[str]:
        """What the job writes, as it comes, until it has ended."""
        shown = 0
        while True:
            at = 0
            for text in self._tail(name):
                start = max(0, shown - at)
                at += len(text)
                if at > shown:  # after a broken connection the log comes from its beginning again
                    shown = at
                    yield text[start:]
            if self._info(name).status in ENDED:
                return
            time.sleep(POLL_SECONDS)

    def ended(self, name: str) -> Ended:
        """How the job ended: its own exit code where it has one."""
        job = self._info(name)
        status, code = str(job.status.value), job.driver_exit_code
        if status == "SUCCEEDED":
            return Ended(status, 0, "")
        fallback = STOPPED_CODE if status == "STOPPED" else 1
        return Ended(status, code if code and code > 0 else fallback, " ".join((job.message or "").split()))

    def stop(self, name: str) -> bool:
        """Ask a job to end; False where it has."""
        with _said(self.address):
            return bool(self.client.stop_job(name))

    def describe(self, name: str) -> str:
        """One job in words."""
        job = self._info(name)
        message = " ".join((job.message or "").split())
        return f"{_line(job)}\n{message}" if message else _line(job)

    def listing(self) -> list[str]:
        """One line per job, the last first."""
        jobs = [job for job in self._jobs() if job.submission_id]
        return [_line(job) for job in sorted(jobs, key=lambda job: -(job.start_time or 0))]

    def _jobs(self) -> list[Any]:
        with _said(self.address):
            return list(self.client.list_jobs())

    def _info(self, name: str) -> Any:
        with _said(self.address):
            return self.client.get_job_info(name)

    def _tail(self, name: str) -> Iterator[str]:
        """The log so far and what follows; ends with the job or the connection."""
        import aiohttp

        loop = asyncio.new_event_loop()
        lines = self.client.tail_job_logs(name)
        try:
            while True:
                yield loop.run_until_complete(anext(lines))
        except (StopAsyncIteration, RuntimeError, aiohttp.ClientError):
            return  # the caller asks whether the job has ended
        finally:
            loop.run_until_complete(lines.aclose())
            loop.close()


def _line(job: Any) -> str:
    """A job in one line: id, state, when it began, how long, what it runs."""
    began = (
        time.strftime("%Y-%m-%d %H:%M", time.gmtime((job.start_time or 0) / 1000)) if job.start_time else "not begun"
    )
    seconds = ((job.end_time or time.time() * 1000) - job.start_time) / 1000 if job.start_time else 0
    return f"{job.submission_id}  {job.status.value.lower()}  {began} UTC, {seconds:.0f} s  {job.entrypoint}"


def connect_jobs(address: str | None) -> JobServer:
    """The Jobs API at `address`, else at RAY_API_SERVER_ADDRESS, else at RAY_ADDRESS.

    Raises BadInput where nothing answers, where the token is refused, and where there is no address.
    """
    chosen = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not chosen:
        raise BadInput("bench submit: which cluster? Give --address http://head:8265, or set RAY_API_SERVER_ADDRESS")
    if "://" not in chosen and _is_web(chosen):
        chosen = f"http://{chosen}"
    from bench.scheduling.cluster import must_answer, prepare_client

    prepare_client()
    with _said(chosen):
        must_answer(chosen)
        from ray.job_submission import JobSubmissionClient

        os.environ["RAY_API_SERVER_ADDRESS"] = chosen  # Ray would let the environment override an argument
        for module in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.ERROR)
        return JobServer(JobSubmissionClient(chosen), chosen)


def _is_web(place: str) -> bool:
    """Whether HOST:PORT answers HTTP, as a jobs server does; Ray's own port, from which Ray finds it, does not."""
    import requests

    try:
        requests.get(f"http://{place}/api/version", timeout=ANSWER_SECONDS)
    except requests.RequestException:
        return False
    return True


@contextmanager
def _said(address: str) -> Iterator[None]:
    """Turn what Ray and the network raise into one line; Ray's texts hold no token."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # Ray raises RuntimeError, AuthenticationError, ValueError and requests' own
        text = " ".join(str(error).split()) or type(error).__name__
        raise BadInput(f"the jobs server at {address}: {text[:600]}") from None
