"""What is installed is what is here."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    here = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("bench", "methods")
        for path in (ROOT / top).rglob("__init__.py")
    }
    cards = {"bench._cards.datasets", "bench._cards.sweeps"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == here | cards


def test_the_wheel_holds_code_and_cards(tmp_path):
    pytest.importorskip("setuptools", reason="a virtual environment of Python 3.12 has no setuptools")
    script = f"import setuptools.build_meta as b; print(b.build_wheel({str(tmp_path)!r}))"
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("bench/cli.py", "methods/simclr.py", "bench/py.typed", "bench/_cards/sweeps/simclr_gamma.toml"):
        assert name in names
    assert {f"bench/_cards/datasets/{name}.toml" for name in ("leaves", "wings", "shells")} <= names
    assert not [name for name in names if name.startswith(("datasets/", "sweeps/", "tests/"))]


def test_every_installed_version_is_pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert all(line.count("==") == 1 and "/" not in line for line in lines)
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["test"]]
    names = {requirement.partition(">")[0].partition("[")[0].lower() for requirement in wanted}
    assert names <= pins
