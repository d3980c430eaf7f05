"""An encoder judged on the datasets of its trial: everything chosen on train and val, test scored once."""

from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.data.pack import Pack, open_pack, pack_size
from bench.data.source import Source, Split
from bench.encoders import Encoder
from bench.evaluation import protocols
from bench.evaluation.examples import Examples, device_of, split_examples
from bench.evaluation.finetune import Finetune
from bench.evaluation.metrics import per_class
from bench.evaluation.protocols import Task
from bench.job import Job
from bench.results.schema import Measurement
from bench.trial import Evaluation

GPU_SHARE = 0.4  # of the free memory that one pack may take


@lru_cache(maxsize=16)
def _open(source: str, size: int, cache: str, device: str) -> Pack:
    """A pack, kept for the trials that this process runs next; on the GPU itself where it leaves room to train."""
    pack = open_pack(Source.model_validate_json(source), size, Path(cache))
    if device.startswith("cuda") and pack.images.nbytes < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return pack.on(device)
    return pack


def open_job_pack(job: Job, fingerprint: str, device: torch.device) -> Pack:
    """The pack of one of the job's datasets, at the size that its views need."""
    size = pack_size(job.trial.training.image_size)
    return _open(job.sources[fingerprint].model_dump_json(), size, job.cache, str(device))


def _split(job: Job, encoder: Encoder, evaluation: Evaluation, split: Split) -> Examples:
    pack = open_job_pack(job, evaluation.fingerprint, device_of(encoder))
    return split_examples(encoder, pack, split, job.trial.training.image_size)


def _task(job: Job, evaluation: Evaluation, classes: int) -> Task:
    return Task(classes, evaluation.metric, job.trial.seed, job.trial.finetune or Finetune())


def quick_objective(job: Job, encoder: Encoder) -> float:
    """The mean validation score over the datasets by a cheap linear probe: what pruning decides on."""
    values = []
    for evaluation in job.trial.evaluate:
        train, val = (_split(job, encoder, evaluation, split) for split in ("train", "val"))
        classes = len(open_job_pack(job, evaluation.fingerprint, device_of(encoder)).classes)
        values.append(protocols.quick_objective(train, val, _task(job, evaluation, classes)))
    return fmean(values)


def evaluate(job: Job, encoder: Encoder) -> tuple[list[Measurement], float]:
    """Judge the encoder on every dataset with every protocol.

    Everything is chosen on train and val before the test split is read, once. Returns the measurements and
    the validation objective: the mean over datasets of the headline metric under the objective's protocol.
    """
    rows: list[Measurement] = []
    objectives: list[float] = []
    for evaluation in job.trial.evaluate:
        pack = open_job_pack(job, evaluation.fingerprint, device_of(encoder))
        task = _task(job, evaluation, len(pack.classes))
        train, val = (_split(job, encoder, evaluation, split) for split in ("train", "val"))
        chosen = [protocols.select(name, train, val, task) for name in evaluation.protocols]
        test = _split(job, encoder, evaluation, "test")
        for selected in chosen:
            if selected.protocol == job.trial.objective:
                objectives.append(selected.best.scores.value(evaluation.metric))
            for result in protocols.score(selected, train, val, test):
                rows += _measurements(result, pack.name, evaluation, pack.classes)
    return rows, fmean(objectives)


def _measurements(
    result: protocols.Result, dataset: str, evaluation: Evaluation, classes: tuple[str, ...]
) -> list[Measurement]:
    """The rows of one protocol's result: one per metric, and the confusion matrix with its per-class figures."""
    common: dict[str, Any] = {
        "dataset": dataset,
        "dataset_fingerprint": evaluation.fingerprint,
        "protocol": result.protocol,
        "protocol_version": result.version,
        "variant": result.variant,
        "split": result.split,
        "samples": result.scores.samples,
        "chosen": result.chosen,
    }
    rows = []
    for metric, value in result.scores.values.items():
        low, high = result.scores.intervals.get(metric, (None, None))
        headline = metric == evaluation.metric
        rows.append(Measurement(**common, metric=metric, headline=headline, value=value, low=low, high=high))
    counts: list[int] = result.scores.confusion.flatten().tolist()
    figures = vars(per_class(result.scores.confusion))
    return [*rows, Measurement(**common, **figures, metric="confusion", value=None, confusion=counts, classes=classes)]
