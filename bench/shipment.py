"""What travels with a job to a Ray cluster.

One zip file goes into the job's runtime environment: the code of bench and methods as they are here, the cards, a
sweep given by path, a method of the user's own, and a folder of theirs where they ask for it. Its bytes depend on its
content alone, so that what a cluster has already is not sent again. Nothing secret belongs in it: Ray keeps the
runtime environment and shows it in the dashboard.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BadInput
from bench.plan import SHIPPED, find_provenance
from bench.storage import is_remote, normal
from bench.sweep import Sweep

LIMIT_BYTES = 100 * 2**20  # Ray's own limit is 512 MiB, but the head keeps packages in memory
EXCLUDED = {".git", ".venv", "venv", "__pycache__", "node_modules"}  # folders of any depth
EXCLUDED_ON_TOP = {"results", "data", "build", "dist"}  # folders of a --working-dir
PASSED_ON = ("BENCH_DATA", "BENCH_CACHE")  # where they are set here
SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|AUTH", re.IGNORECASE)
OWN = ".bench"  # folder of the shipment that holds cards and sweeps


@dataclass(frozen=True)
class Shipment:
    """A job as it is sent: the command, what the runtime environment holds, and what the job is called."""

    entrypoint: str
    archive: bytes
    files: int
    environment: Mapping[str, str]
    label: str

    @property
    def size(self) -> int:
        """Bytes that travel."""
        return len(self.archive)


def pack_shipment(
    command: Sequence[str],
    options: Mapping[str, Any],
    sweep: Sweep,
    *,
    working_dir: Path | None = None,
    environment: Sequence[str] = (),
) -> Shipment:
    """Pack the `bench run` of `command`, whose parsed options and sweep are given.

    Raises BadInput for what cannot work on a cluster: results in the job's own folder, data that is only here, a
    secret among the variables, more than LIMIT_BYTES.
    """
    if options.get("address"):
        raise BadInput("bench submit: the job joins the cluster that it is sent to; leave --address out of `run`")
    variables = _variables(environment)
    _must_outlive(options, variables)
    files = _code() | (_folder(working_dir) if working_dir else {})
    for candidate in sweep.candidates:
        files |= _method(sweep.method(candidate))
    for name in (sweep.pretrain.dataset, *sweep.evaluate.datasets):
        _must_be_there(name, files)
    cards, folders = _cards()
    command, sweep_file = _with_sweep(list(command), str(options["sweep"]))
    files |= cards | sweep_file
    if folders:
        variables["BENCH_CARDS"] = os.pathsep.join(folders)
    archive = _zip(files)
    return Shipment(
        entrypoint=shlex.join(["python", "-m", "bench", *command]),
        archive=archive,
        files=len(files),
        environment=variables
        | {
            "PYTHONUNBUFFERED": "1",  # lines come when they are written
            "COLUMNS": str(shutil.get_terminal_size((120, 24)).columns),
            SHIPPED: _provenance(),
        },
        label=sweep.name,
    )


def _variables(given: Sequence[str]) -> dict[str, str]:
    variables = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise BadInput(f"--env {name!r}: write it as NAME=VALUE")
        if SECRET.search(name):
            raise BadInput(
                f"--env {name}: Ray stores the variables of a job and its dashboard shows them; give secrets to the "
                "cluster's machines instead (an instance role, a Kubernetes secret)"
            )
        variables[name] = value
    return variables


def _must_outlive(options: Mapping[str, Any], variables: Mapping[str, str]) -> None:
    """Results in a relative folder would be deleted together with the job's own folder."""
    out = variables.get("BENCH_OUT", str(options["out"]))
    if is_remote(out):
        normal(out)  # an address that cannot be one, or holds a secret, is refused here
    elif not options.get("dry_run") and not Path(out).is_absolute():
        raise BadInput(
            f"--out {out}: a job's own folder is deleted after it; name a folder that all machines share or an "
            "address, as in: bench submit -- run ... --out /shared/results (or s3://bucket/results)"
        )


def _must_be_there(name: str, files: Mapping[str, Path]) -> None:
    """A dataset of a relative path is shipped with --working-dir or is not there."""
    path = Path(name).expanduser()
    shipped = any(file == name or file.startswith(f"{os.path.normpath(name)}/") for file in files)
    if path.exists() and not path.is_absolute() and not shipped:
        raise BadInput(
            f"dataset {name!r} is a path on this machine: name a folder that all machines share, an address such as "
            "s3://bucket/folder, a card in a folder of BENCH_CARDS, or ship it with --working-dir"
        )


def _code() -> dict[str, Path]:
    """The code of bench and methods, and the shipped cards, by their place in the shipment."""
    import methods

    package = Path(__file__).resolve().parent
    files = _walk(package, "bench") | _walk(Path(str(methods.__file__)).resolve().parent, "methods")
    for kind in ("datasets", "sweeps"):
        cards = package / "_cards" / kind  # in a wheel, where it is part of the package
        if not cards.is_dir():
            files |= {f"{kind}/{path.name}": path for path in (package.parent / kind).glob("*.toml")}
    return files


def _cards() -> tuple[dict[str, Path], list[str]]:
    """The cards of the folders of BENCH_CARDS, and those folders as the job finds them."""
    files: dict[str, Path] = {}
    folders = []
    for number, entry in enumerate(filter(None, os.environ.get("BENCH_CARDS", "").split(os.pathsep))):
        inside, folder = f"{OWN}/cards{number}", Path(entry).expanduser()
        found = [path for pattern in ("*.toml", "datasets/*.toml", "sweeps/*.toml") for path in folder.glob(pattern)]
        files |= {f"{inside}/{path.relative_to(folder).as_posix()}": path for path in found}
        folders += [inside] if found else []
    return files, folders


def _with_sweep(command: list[str], sweep: str) -> tuple[list[str], dict[str, Path]]:
    """The command with a sweep given by path turned into the shipped file, and that file."""
    from bench.cards import find_card

    path = find_card("sweeps", sweep)
    if not sweep.endswith(".toml"):
        return command, {}
    inside = f"{OWN}/sweeps/{path.name}"
    changed = [inside if part == sweep else part for part in command]
    return [f"--sweep={inside}" if part == f"--sweep={sweep}" else part for part in changed], {inside: path}


def _method(name: str) -> dict[str, Path]:
    """The package or module of a method of the user's own, by its place."""
    if "." not in name:
        return {}
    from importlib.util import find_spec

    top = name.partition(".")[0]
    spec = find_spec(top)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if folders:
        return _walk(Path(folders[0]), top)
    return {f"{top}.py": Path(spec.origin)} if spec and spec.origin else {}


def _folder(folder: Path) -> dict[str, Path]:
    """The files of a user's folder: those that git does not ignore, where it is a repository."""
    if not folder.is_dir():
        raise BadInput(f"--working-dir {folder}: no such folder")
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=folder,
            capture_output=True,
            check=True,
        ).stdout.decode("utf-8", "surrogateescape")
    except (OSError, subprocess.SubprocessError):
        return _walk(folder, "")
    files = {name: folder / name for name in listed.split("\0") if name}
    return {name: path for name, path in files.items() if _travels(name) and path.is_file()}


def _walk(folder: Path, inside: str) -> dict[str, Path]:
    """Every file under a folder that travels, by its place under `inside`."""
    files = {}
    for parent, folders, names in os.walk(folder):
        here = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if name not in EXCLUDED]
        for name in names:
            place, path = (Path(inside) / here / name).as_posix(), folder / here / name
            if _travels(place) and path.is_file():
                files[place] = path
    return files


def _travels(place: str) -> bool:
    *folders, name = Path(place).parts
    on_top = bool(folders) and folders[0] in EXCLUDED_ON_TOP
    return not (on_top or EXCLUDED & set(folders) or name.endswith((".pyc", ".pyo")))


def _zip(files: Mapping[str, Path]) -> bytes:
    """A zip archive that depends on the files' names and bytes alone."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > LIMIT_BYTES:
        large = sorted(sizes, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MB)" for name in large)
        raise BadInput(
            f"{sum(sizes.values()) / 2**20:.0f} MB would be shipped, {LIMIT_BYTES / 2**20:.0f} MB may be; the largest: "
            f"{shown}; data belongs on storage that the cluster reaches"
        )
    with tempfile.SpooledTemporaryFile(max_size=LIMIT_BYTES) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name)  # of 1980: no times, no owner
                entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
                archive.writestr(entry, files[name].read_bytes())
        file.seek(0)
        return file.read()


def _provenance() -> str:
    """The commit of the shipped code as JSON: the shipment is no checkout."""
    return json.dumps(find_provenance().model_dump(include={"git_commit", "git_dirty"}))
