"""What a trial gets: fractions, types of GPU, elastic workers, and how many trials fit on which machines."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.errors import BadInput
from bench.records import parse
from bench.scheduling.cluster import Cluster
from bench.scheduling.run import per_worker, run_agenda, trial_slots
from bench.sweep import Resources
from bench.sweepfile import load_sweep

SWEEP = """
title = "q?"
method = "simclr"
[pretrain]
dataset = "{data}"
image_size = 16
epochs = 2
batch_size = 12
[space]
temperature = {{ log_uniform = [0.1, 1.0] }}
[search]
trials = {trials}
[evaluate]
datasets = ["{data}"]
protocols = ["knn"]
objective = "knn"
[confirm]
seeds = []
"""

A100 = {"CPU": 8.0, "GPU": 4.0, "accelerator_type:A100": 1.0}
L4 = {"CPU": 4.0, "GPU": 2.0, "accelerator_type:L4": 1.0}


class FakePlan:
    """As much of a plan as placing its trials needs."""

    def __init__(self, gpus: float = 0.0, **resources: Any) -> None:
        self.sweep = type("Sweep", (), {"resources": parse(Resources, resources, "test")})
        self.gpus = gpus


def slots(nodes: list[dict[str, float]], gpus: float = 0.0, **resources: Any) -> int:
    return trial_slots(FakePlan(gpus, **resources), Cluster(tuple(nodes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "nodes", "gpus", "resources"),
    [
        (2, [{"CPU": 2.0}], 0, {}),
        (2, [{"CPU": 3.0}, {"CPU": 3.0}], 0, {"cpus_per_worker": 2}),  # not three: a worker lies on one machine
        (1, [{"CPU": 3.0}, {"CPU": 3.0}], 0, {"cpus_per_worker": 2, "workers": 2}),
        (4, [{"CPU": 1.0}], 0, {"cpus_per_worker": 0.25}),
        (10, [{"CPU": 1.0}], 0, {"cpus_per_worker": 0.1}),
        (6, [A100, L4], 1, {}),
        (4, [A100, L4], 1, {"accelerator": "A100"}),
        (4, [L4], 0.5, {"gpus_per_worker": 0.5}),
        (4, [L4], 0.4, {"gpus_per_worker": 0.4}),  # not five: a fraction lies on one GPU
        (3, [{"CPU": 9.0, "GPU": 1.0}], 1 / 3, {"gpus_per_worker": 1 / 3}),
        (1, [{"CPU": 3.0}], 0, {"workers": 4, "min_workers": 2}),
        (2, [{"CPU": 8.0}], 0, {"workers": 4, "min_workers": 2}),
    ],
)
def test_how_many_trials_fit(expected, nodes, gpus, resources):
    assert slots(nodes, gpus, **resources) == expected


@pytest.mark.parametrize(
    ("words", "nodes", "gpus", "resources"),
    [
        ("one trial needs 4 CPUs (4 workers), Ray has 2", [{"CPU": 2.0}], 0, {"workers": 4}),
        ("one trial needs 3 CPUs (3 workers), Ray has 2", [{"CPU": 2.0}], 0, {"workers": 4, "min_workers": 3}),
        ("one trial needs 1 GPUs (1 workers), Ray has 0", [{"CPU": 2.0}], 1, {}),
        ("1 workers of 3 CPU, Ray's machines have places for 0", [{"CPU": 2.0}] * 2, 0, {"cpus_per_worker": 3}),
        ("Ray has no 'A10'; did you mean 'A100'", [A100, L4], 1, {"accelerator": "A10"}),
        ("Ray has no 'H100'; there are none", [{"CPU": 2.0}], 1, {"accelerator": "H100"}),
    ],
)
def test_what_does_not_fit_is_one_error(words, nodes, gpus, resources):
    with pytest.raises(BadInput) as error:
        slots(nodes, gpus, **resources)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "resources"),
    [
        ("min_workers 3 is more than workers 2", {"workers": 2, "min_workers": 3}),
        ("a fraction needs workers = 1", {"workers": 2, "gpus_per_worker": 0.5}),
        ("does not go with gpus_per_worker = 0", {"accelerator": "A100", "gpus_per_worker": 0}),
        ("less than or equal to 1", {"gpus_per_worker": 2}),
        ("did you mean 'cpus_per_worker'", {"cpu_per_worker": 2}),
    ],
)
def test_resources_that_contradict_each_other_are_refused(words, resources):
    with pytest.raises(BadInput, match=words):
        parse(Resources, resources, "test")


def test_a_type_of_gpu_places_a_worker_and_uses_nothing_up():
    plan = FakePlan(0.5, gpus_per_worker=0.5, accelerator="A100")
    assert per_worker(plan) == {"CPU": 1.0, "GPU": 0.5, "accelerator_type:A100": 0.001}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "noise"
    dice = np.random.default_rng(0)
    for name, top in (("dark", 128), ("light", 256)):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            pixels = dice.integers(top - 100, top, (24, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def write(folder: Path, data: Path, trials: int = 1) -> str:
    path = folder / "q.toml"
    path.write_text(SWEEP.format(data=data, trials=trials))
    return str(path)


def test_an_elastic_batch_is_shared_equally_by_any_number_of_workers(tmp_path, pictures):
    path = write(tmp_path, pictures)
    load_sweep(path, over={"resources": {"workers": 4, "min_workers": 2}})  # 12 is a multiple of 2, 3 and 4
    with pytest.raises(BadInput, match=r"batch_size 12 is not a multiple of 5 workers \(elastic: 2 to 5\); try 60"):
        load_sweep(path, over={"resources": {"workers": 5, "min_workers": 2}})
    with pytest.raises(BadInput, match=r"batch_size 12 is not a multiple of resources.workers 5; try 10"):
        load_sweep(path, over={"resources": {"workers": 5}})


def run(folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, out: str, trials: int, **resources: Any) -> Any:
    """Run a sweep on a local Ray of two CPUs; returns its ledger rows."""
    monkeypatch.setenv("BENCH_CACHE", str(folder / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray

    from bench.cache import cache_folder
    from bench.plan import make_plan
    from bench.results.ledger import Ledger
    from bench.scheduling.agenda import Agenda
    from bench.scheduling.cluster import connect

    sweep = load_sweep(write(folder, data, trials), over={"resources": resources})
    agenda = Agenda(make_plan(sweep, out=folder / out, cache=cache_folder()))
    with connect(None, cpus=2) as cluster:
        run_agenda(agenda, cluster)
        deadline = time.monotonic() + 20
        while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ray.available_resources().get("CPU") == 2
    assert agenda.tally.failures == []
    assert agenda.tally.ran == trials
    return Ledger(folder / out).read().frame


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_more_trials_than_slots_with_half_a_cpu_for_each_worker(tmp_path, pictures, monkeypatch):
    frame = run(tmp_path, pictures, monkeypatch, "out", trials=5, workers=2, cpus_per_worker=0.5)
    assert frame["trial_id"].nunique() == 5


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_an_elastic_trial_runs_with_the_workers_there_are_and_gives_the_same(tmp_path, pictures, monkeypatch):
    elastic = run(tmp_path, pictures, monkeypatch, "elastic", trials=1, workers=4, min_workers=2)
    fixed = run(tmp_path, pictures, monkeypatch, "fixed", trials=1, workers=2)
    keys = ["trial_id", "dataset", "protocol", "variant", "split", "metric", "value", "objective"]
    left, right = (frame[keys].sort_values(keys[:6]).reset_index(drop=True) for frame in (elastic, fixed))
    assert left.equals(right)
