"""docs/cluster: every file is what the tool it is for reads, and every command in them is one that bench runs."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from bench.cli import app
from bench.request import requested_sweep

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "cluster"
LAUNCHERS = ("aws.yaml", "local.yaml")


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def commands() -> dict[str, list[str]]:
    """Every `bench run` of the folder by where it stands, without what comes before it."""
    found = {"rayjob.yaml": shlex.split(yaml.safe_load(text("rayjob.yaml"))["spec"]["entrypoint"])}
    slurm = text("slurm.sh").replace("\\\n", " ")
    found["slurm.sh"] = shlex.split(re.search(r" -- +(bench run .*)", slurm).group(1))
    for name in LAUNCHERS:
        found[name] = shlex.split(re.search(r'"(bench run [^"]*)"', text(name)).group(1))
    for number, line in enumerate(re.findall(r"`(?:ray exec|bench submit)[^`]*`", text("README.md"))):
        inner = re.search(r'"(bench run [^"]*)"', line)
        words = shlex.split(inner.group(1)) if inner else ["bench", *shlex.split(line.strip("`").partition(" -- ")[2])]
        if words != ["bench"]:
            found[f"README.md {number}"] = words
    return found


def test_there_is_a_command_for_each_way():
    found = commands()
    assert {"rayjob.yaml", "slurm.sh", *LAUNCHERS} <= set(found)
    assert len(found) >= 7
    shown = text("README.md")
    for name in ("Containerfile", "rayjob.yaml", "slurm.sh", *LAUNCHERS):
        assert f"docs/cluster/{name}" in shown
        first_comment = next(line[4:] for line in text(name).splitlines() if line.startswith("#   "))
        assert first_comment in shown, f"{name}: README gives another command"


@pytest.mark.parametrize("place", commands())
def test_each_command_is_one_that_bench_runs(place):
    words = commands()[place]
    assert words[:2] == ["bench", "run"]
    run: Any = get_command(app).commands["run"]  # type: ignore[attr-defined]
    options = run.make_context("bench run", words[2:]).params
    sweep = requested_sweep(options["sweep"], profile=options["profile"])
    assert (sweep.name, sweep.profile) == ("study", "full")
    assert Path(options["out"]).is_absolute()


def test_the_entrypoint_runs_here(tmp_path):
    """The commands are one and the same but for the address; it runs on the small profile, as no data is needed."""
    bare = {tuple(word for word in words if word not in ("--address", "auto")) for words in commands().values()}
    assert len(bare) == 1
    words = [{"full": "small", "/shared/results": str(tmp_path / "out")}.get(word, word) for word in bare.pop()]
    command = [sys.executable, "-m", *words, "--candidates", "simclr", "--trials", "1", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "profile small: a dry run" in done.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_files_are_valid_for_ray(name):
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    config = yaml.safe_load(text(name))
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config | {"max_worker": 1}, schema)  # the schema does refuse a wrong key
    starts = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert "0.0.0.0" not in starts  # the dashboard runs code: it is not for the world
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_node_types_fit_together():
    config = yaml.safe_load(text("aws.yaml"))
    kinds = config["available_node_types"]
    assert config["head_node_type"] in kinds
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) == config["max_workers"]
    assert kinds["gpu"]["min_workers"] == kinds["gpu"]["max_workers"]


def test_ray_has_the_options_that_are_used():
    for command, options in {
        "exec": ("--start", "--stop", "--tmux"),
        "symmetric-run": ("--address", "--min-nodes"),
    }.items():
        shown = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert not [option for option in options if option not in shown]


# The fields of KubeRay's RayJob that are used here, with their types; a field outside is an error.
POD = {
    "spec": {
        "containers": [
            {
                "name": str, "image": str, "env": [{"name": str, "value": str}],
                "resources": {"requests": {str: str}, "limits": {str: str}},
                "volumeMounts": [{"name": str, "mountPath": str}],
            }
        ],
        "volumes": [{"name": str, "persistentVolumeClaim?": {"claimName": str}, "emptyDir?": {str: str}}],
    }
}  # fmt: skip
RAY_JOB = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "backoffLimit": int,
        "rayClusterSpec": {
            "rayVersion": str,
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {str: str}, "template": POD},
            "workerGroupSpecs": [
                {
                    "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int,
                    "rayStartParams": {str: str}, "template": POD,
                }
            ],
        },
    },
}  # fmt: skip


def misfits(value: Any, form: Any, place: str = "") -> Iterator[str]:
    """Where `value` departs from `form`: a type, a literal, a list of one form, a table of fields or `{str: str}`."""
    if isinstance(form, Mapping) and isinstance(value, Mapping):
        if str in form:
            yield from (f"{place}.{key}" for key, inner in value.items() if not isinstance(inner, str))
            return
        fields = {key.rstrip("?"): inner for key, inner in form.items()}
        yield from (f"{place}.{key} is unknown" for key in value if key not in fields)
        yield from (f"{place}.{key} is missing" for key in form if not key.endswith("?") and key not in value)
        for key in set(value) & set(fields):
            yield from misfits(value[key], fields[key], f"{place}.{key}")
    elif isinstance(form, list) and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from misfits(inner, form[0], f"{place}[{number}]")
    elif not (isinstance(value, form) if isinstance(form, type) else value == form):
        yield f"{place}: {value!r}"


def test_the_ray_job_has_the_right_shape():
    job = yaml.safe_load(text("rayjob.yaml"))
    assert list(misfits(job, RAY_JOB)) == []
    broken = json.loads(json.dumps(job))
    broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = "4"
    assert list(misfits(broken, RAY_JOB)) == [".spec.rayClusterSpec.workerGroupSpecs[0].replica is unknown"]
    cluster = job["spec"]["rayClusterSpec"]
    import ray

    assert cluster["rayVersion"] == ray.__version__
    for pod in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert set(mounts) == volumes
        assert mounts == {"shared": "/shared", "cache": "/cache"}


def test_the_slurm_script_is_bash_with_directives_that_sbatch_reads():
    path = FOLDER / "slurm.sh"
    assert subprocess.run(["bash", "-n", path], capture_output=True, check=False).returncode == 0
    lines = text("slurm.sh").splitlines()
    directives = dict(
        re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line).groups() for line in lines if "#SBATCH" in line
    )
    known = {"job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time", "output", "requeue"}
    assert set(directives) == known
    assert directives["ntasks-per-node"] == "1"  # one Ray per node
    assert re.fullmatch(r"\d+:\d\d:\d\d", directives["time"])
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])  # sbatch stops reading at the first command


def test_the_slurm_script_starts_ray_on_all_nodes(tmp_path):
    """Run with stand-ins for Slurm's commands that write down how they were called."""
    for name, body in {
        "scontrol": "printf 'n1\\nn2\\n'",
        "srun": 'printf "%s\\n" "$@"; test ${#RAY_AUTH_TOKEN} = 64',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "12345",
        "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "32", "SLURM_GPUS_ON_NODE": "4",
    }  # fmt: skip
    done = subprocess.run(["bash", FOLDER / "slurm.sh"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:6] == ["ray", "symmetric-run", "--address", "n1:22345", "--min-nodes", "2"]


def test_the_containerfile_builds_from_the_pins():
    joined = text("Containerfile").replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in joined.splitlines() if line and not line.startswith("#")]
    assert steps[0][0] == "FROM"
    assert {step for step, _ in steps} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    copied = [word for step, rest in steps if step == "COPY" for word in rest.split()[:-1]]
    assert not [name for name in copied if not (ROOT / name).exists()]
    assert {"pyproject.toml", "constraints.txt", "bench", "methods", "datasets", "sweeps"} <= set(copied)
    (install,) = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    extras = re.search(r'-c constraints.txt "\.\[(.*)\]"', install).group(1).split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    wanted = [*project["dependencies"], *(need for extra in extras for need in project["optional-dependencies"][extra])]
    assert not [need for need in wanted if re.match(r"[\w-]+", need).group().lower().replace("_", "-") not in pins]
