"""The plan of a sweep: its datasets resolved, and the trials and jobs that it leads to."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import mirror
from bench.data.dataset import Dataset, resolve
from bench.data.source import Source
from bench.evaluation.protocols import PROTOCOLS
from bench.job import Job, Provenance
from bench.records import digest
from bench.registry import find_method
from bench.space import Value
from bench.sweep import Settled, Sweep
from bench.trial import Evaluation, Training, Trial

PACKAGES = ("bench", "torch", "torchvision", "ray", "optuna", "numpy", "pandas", "pyarrow")


SHIPPED = "BENCH_PROVENANCE"  # commit of code that was shipped, as JSON: a shipment is no checkout


@dataclass(frozen=True)
class Hardware:
    """What decides how trials are placed, and whether half precision pays."""

    gpus: float
    gpu_bf16: bool
    cpu_bf16: bool


def local_hardware() -> Hardware:
    """This machine. A CPU is worth bf16 only where it has matrix units for it (AMX)."""
    import torch

    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    gpus = torch.cuda.device_count()
    return Hardware(gpus, bool(gpus) and torch.cuda.is_bf16_supported(), bool(capabilities.get("amx_bf16")))


@dataclass(frozen=True)
class Plan:
    """A sweep with its data at hand.

    `gpus` is what one worker gets; `bf16` says whether precision "auto" means bf16 on the hardware at hand; `out` and
    `cache` are absolute folders; of results on a store `out` is the mirror.
    """

    sweep: Sweep
    pretrain: Dataset
    evaluate: tuple[Dataset, ...]
    out: Path
    cache: Path
    gpus: float = 0.0
    bf16: bool = False

    def on(self, hardware: Hardware) -> "Plan":
        """The same plan on this hardware: one GPU per worker where there is any, unless the sweep says otherwise."""
        wanted = self.sweep.resources.gpus_per_worker
        gpus = (1.0 if hardware.gpus else 0.0) if wanted is None else wanted
        return replace(self, gpus=gpus, bf16=hardware.gpu_bf16 if gpus else hardware.cpu_bf16)

    @cached_property
    def sweep_id(self) -> str:
        """Identity of the question: neither resources nor the number of draws or seeds change it."""
        asked = self.sweep.model_dump(mode="json", include={"candidates", "search", "evaluate"})
        asked["search"].pop("trials")
        for candidate in asked["candidates"].values():
            candidate.pop("trials")
        asked["evaluate"]["datasets"] = [dataset.source.fingerprint for dataset in self.evaluate]
        first = {
            name: self._trial(self.sweep.candidate(name), 0).model_dump(mode="json", exclude={"seed", "evaluate"})
            for name in self.sweep.candidates
        }
        return digest(asked | {"trials": first})

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Every dataset's source by its fingerprint."""
        return {dataset.source.fingerprint: dataset.source for dataset in (*self.evaluate, self.pretrain)}

    @cached_property
    def provenance(self) -> Provenance:
        """Commit and package versions of this process."""
        return find_provenance()

    def record(self) -> None:
        """Keep the resolved sweep beside its results, for readers and reports."""
        path = self.out / "sweeps" / f"{self.sweep.name}-{self.sweep_id[:12]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        facts = {"sweep_id": self.sweep_id, **self.sweep.model_dump(mode="json")}
        facts["data"] = {fingerprint: source.model_dump() for fingerprint, source in self.sources.items()}
        temporary.write_text(json.dumps(facts, indent=1), encoding="utf-8")
        mirror.publish(temporary, path)

    def search_trial(self, candidate: str, values: Mapping[str, Value]) -> Trial:
        """The trial of a candidate's drawn configuration."""
        return self._trial(self.sweep.candidate(candidate, values), self.sweep.search.training_seed)

    def search_job(self, candidate: str, draw: int, values: Mapping[str, Value]) -> Job:
        """The job of a candidate's draw number `draw`."""
        trial = self.search_trial(candidate, values)
        rungs = self.sweep.search.prune.rungs(trial.training.epochs)
        return self._job(trial, stage="search", configuration=candidate, draw=draw, swept=dict(values), rungs=rungs)

    def confirm_jobs(self, best: Mapping[str, Mapping[str, Value]]) -> list[Job]:
        """Each candidate's best configuration, its baselines and the controls on every seed.

        Seed by seed, so that pairs end together; a candidate without a best configuration is left out.
        """
        confirm, jobs = self.sweep.confirm, []
        for seed in confirm.seeds:
            for name, values in best.items():
                trial = self._trial(self.sweep.candidate(name, values), seed)
                jobs.append(self._confirm_job(trial, name, "best", values))
                for baseline in confirm.baselines:
                    if self.sweep.of(baseline) == name:
                        trial = self._trial(self.sweep.candidate(name, values, baseline.set), seed)
                        jobs.append(self._confirm_job(trial, baseline.name, "baseline", values))
            for control in confirm.controls:
                jobs.append(self._confirm_job(self._trial(self.sweep.settle(control), seed), control, "control", {}))
        return jobs

    def _trial(self, settled: Settled, seed: int) -> Trial:
        evaluate = self.sweep.evaluate
        kind = find_method(settled.method)
        judged = {dataset.source.fingerprint: dataset.source.metric for dataset in self.evaluate}
        return Trial(
            method=settled.method,
            method_version=kind.version,
            config=settled.config,
            data=self.pretrain.source.fingerprint if kind.trains else "",
            training=self._precise(settled.training),
            evaluate=tuple(
                Evaluation(fingerprint=fingerprint, metric=metric, protocols=tuple(sorted(evaluate.protocols)))
                for fingerprint, metric in sorted(judged.items())
            ),
            finetune=settled.finetune if "finetune" in evaluate.protocols else None,
            protocol_versions={name: PROTOCOLS[name].version for name in sorted(evaluate.protocols)},
            objective=evaluate.objective,
            seed=seed,
        )

    def _precise(self, training: Training) -> Training:
        if training.precision != "auto":
            return training
        return training.model_copy(update={"precision": "bf16" if self.bf16 else "fp32"})

    def _confirm_job(self, trial: Trial, name: str, role: str, best: Mapping[str, Value]) -> Job:
        return self._job(trial, stage="confirm", configuration=name, role=role, swept=dict(best))

    def _job(self, trial: Trial, **place: Any) -> Job:
        resources = self.sweep.resources
        workers = resources.workers if find_method(trial.method).trains else 1
        return Job(
            trial=trial,
            sources=self.sources,
            sweep=self.sweep.name,
            sweep_id=self.sweep_id,
            out=mirror.address(self.out),
            cache=str(self.cache),
            workers=workers,
            threads=max(1, int(resources.cpus_per_worker)),
            provenance=self.provenance,
            **place,
        )


def make_plan(sweep: Sweep, *, out: Path | str, cache: Path, data_root: str | None = None) -> Plan:
    """Resolve the sweep's datasets (reads every image's bytes once, to know them by content); see `Plan.on`.

    `out`: a folder, or an address on a store, which is asked whether it answers.
    """
    folder = mirror.opened(out, "sweeps")
    resolved = {name: resolve(name, data_root) for name in (*sweep.evaluate.datasets, sweep.pretrain.dataset)}
    return Plan(
        sweep,
        resolved[sweep.pretrain.dataset],
        tuple(resolved[name] for name in dict.fromkeys(sweep.evaluate.datasets)),
        folder,
        cache.absolute(),
    )


def find_provenance() -> Provenance:
    """The git commit of the checkout that this module is in or was shipped from, and package versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if SHIPPED in os.environ:
        return Provenance(**json.loads(os.environ[SHIPPED]), versions=versions)
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD")
    return Provenance(
        git_commit=commit, git_dirty=bool(commit and _git(here, "status", "--porcelain")), versions=versions
    )


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def describe(values: Mapping[str, Any]) -> str:
    """One short line for a configuration: names and values, numbers with three digits."""
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value)
