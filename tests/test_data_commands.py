"""`bench data list, show, check, pack, clean` as a user calls them."""

import io
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.catalogue import details
from bench.cli import app
from bench.datasheet import visible
from bench.errors import BadInput, UnknownName

SHARED = Path(__file__).parents[2] / "shared" / "data"
Call = Callable[..., tuple[int, str]]
HOSTILE = "[bold red]x[/] :smile: [link=http://a]"


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("BENCH_DATA", "BENCH_CARDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data() -> Call:
    """Run `bench data ...`; returns its exit code and output. A user's mistake is raised."""

    def call(*arguments: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["data", *map(str, arguments)])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return call


def bench(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "data", *map(str, arguments)]
    root = str(Path(__file__).parents[1])
    given = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))} | environment
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | given, stdin=subprocess.DEVNULL, timeout=120
    )


def draw(folder: Path, *names: str, each: int = 5) -> Path:
    dice = np.random.default_rng(len(folder.name))
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = dice.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def write_card(path: Path, **fields: object) -> Path:
    values = {
        "title": "A title",
        "summary": "a summary",
        "reader": "cub200",
        "licence": "free",
        "citation": "none",
        "version": "1",
    } | fields
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    return path


# ---- list


def test_list_has_a_line_per_card_and_says_where_each_is(data: Call, tmp_path: Path) -> None:
    (tmp_path / "root" / "food-101" / "meta").mkdir(parents=True)
    (tmp_path / "root" / "food-101" / "meta" / "train.json").write_text("{}")
    code, out = data("list", "--data-root", tmp_path / "root")
    lines = {line.split()[0]: line for line in out.splitlines()[2:]}
    assert code == 0
    assert {"cub200", "food101", "leaves", "wings", "shells"} <= set(lines)
    assert "here: food-101" in lines["food101"]
    assert "not here, 1.2 GB" in lines["cub200"]
    assert "built-in" in lines["leaves"]
    assert lines["cub200"].split().count("5,994") == lines["cub200"].split().count("200") - 1 == 1


@pytest.mark.parametrize("columns", ["80", "140"])
def test_list_fits_a_terminal(data: Call, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = data("list")[1].splitlines()
    names = [line.split()[0] for line in lines if line.startswith(("cub200", "food101", "leaves"))]
    assert names == ["cub200", "food101", "leaves"]
    assert not any(line.startswith(" ") for line in lines)  # no line goes on in the next
    (head,) = [line for line in lines if line.startswith("name")]
    assert all(word in head for word in ("classes", "train", "test", "metric", "where"))


def test_list_is_quick_and_reads_no_image() -> None:
    """In processor time; torch alone takes longer to import."""
    began = os.times()
    done = bench("list")
    ended = os.times()
    assert done.returncode == 0, done.stderr
    assert (ended.children_user - began.children_user) + (ended.children_system - began.children_system) < 1.5
    modules = "sys, bench.bar, bench.checksheet, bench.datasheet, bench.shelfsheet"
    code = f"import {modules}; sys.exit(any(name in sys.modules for name in ('torch', 'ray', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_one_broken_card_does_not_hide_the_others(data: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "broken.toml").write_text("title = \n")
    monkeypatch.setenv("BENCH_CARDS", str(tmp_path / "cards"))
    code, out = data("list")
    assert code == 0
    assert "unreadable" in out
    assert "leaves" in out


def test_a_card_of_the_users_own_is_listed_as_its_text_is(
    data: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(tmp_path / "cards" / "mine.toml", title=HOSTILE, licence="a\x1b[31mb", classes=3)
    monkeypatch.setenv("BENCH_CARDS", str(tmp_path / "cards"))
    monkeypatch.setenv("COLUMNS", "240")
    line = next(line for line in data("list")[1].splitlines() if line.startswith("mine"))
    assert "[bold red]x[/] :smile:" in line
    assert "a\\x1b[31mb" in line
    assert "\x1b" not in line


# ---- show


def test_show_tells_all_of_a_card(data: Call, tmp_path: Path) -> None:
    code, out = data("show", "cub200", "--data-root", tmp_path)
    assert code == 0
    for part in (
        "Caltech-UCSD Birds",
        "Wah et al.",
        "non-commercial",
        "CUB_200_2011.tgz, 1.2 GB (1,150,585,339 bytes)",
        "sha256:0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
        "https://data.caltech.edu/",
        '"cub200?boxes=true"',
        "cut from train: 20 % of each class",
        "not here; `bench data fetch cub200` downloads 1.2 GB",
        f"{tmp_path}/cub200/CUB_200_2011",
        "none yet",
    ):
        assert part in out


def test_show_tells_the_levels_and_which_one_is_meant(data: Call) -> None:
    out = data("show", "aircraft?level=family")[1]
    assert "variant (the usual one)" in out
    assert '"aircraft?level=manufacturer"' in out
    assert "now family" in out


def test_show_sets_what_was_found_beside_the_card(data: Call, tmp_path: Path) -> None:
    draw(tmp_path / "data" / "train", "a", "b")
    draw(tmp_path / "data" / "test", "a", "b", each=2)
    write_card(tmp_path / "own.toml", reader="folder", location="data", counts={"train": 10, "test": 4})
    text = (tmp_path / "own.toml").read_text().replace('{"train": 10, "test": 4}', "{ train = 10, test = 4 }")
    (tmp_path / "own.toml").write_text(text)
    lines = [line.split() for line in data("show", tmp_path / "own.toml")[1].splitlines()]
    assert ["train", "10", "8", "no", "official", "val"] in lines
    assert ["test", "4", "4"] in lines
    assert ["found", str(tmp_path / "data")] in lines


def test_show_of_a_folder_and_of_its_packs(data: Call, tmp_path: Path) -> None:
    folder = draw(tmp_path / "moths", HOSTILE.replace("/", "|"), "plain")
    assert "[bold red]x[|] :smile: [link=http:||a]" in data("show", folder)[1]
    assert data("pack", folder, "--image-size", "16")[0] == 0
    assert "moths: 32x24 px, 10 images" in data("show", folder)[1]


def test_show_tells_a_faulty_table_and_the_rest(data: Call, tmp_path: Path) -> None:
    folder = draw(tmp_path / "moths", "a")
    (folder / "splits.csv").write_text("file,class\n")
    code, out = data("show", folder)
    assert code == 0
    assert "column 'split' is missing" in out


def test_both_shows_agree(data: Call) -> None:
    from rich.console import Console

    console = Console(width=200, highlight=False, file=io.StringIO())
    with console.capture() as shown:
        console.print(details("cub200"))
    assert shown.get().split() == data("show", "cub200")[1].split()


def test_a_wrong_name_is_one_error_with_the_nearest(data: Call) -> None:
    done = bench("show", "cub20")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no dataset card is named 'cub20'; did you mean 'cub200'")
    assert "Traceback" not in done.stderr
    for command in ("check", "pack"):
        with pytest.raises(UnknownName, match="did you mean 'cub200'"):
            data(command, "cub20")


def test_alone_it_shows_its_commands() -> None:
    done = bench()
    assert all(word in done.stdout + done.stderr for word in ("list", "show", "fetch", "check", "pack", "clean"))


# ---- check


def test_check_of_a_sound_folder_is_0_and_of_a_faulty_one_1(data: Call, tmp_path: Path) -> None:
    folder = draw(tmp_path / "moths", "a", "b")
    code, out = data("check", folder)
    assert code == 0
    assert "nothing wrong was found" in out
    (folder / "a" / "0.png").write_bytes(b"")
    code, out = data("check", folder)
    assert code == 1
    assert "  a/0.png (val): empty file" in out.splitlines()
    assert "1 findings" not in out
    assert out.rstrip().endswith("1 finding")


def test_check_shows_names_as_they_are(data: Call, tmp_path: Path) -> None:
    label = HOSTILE.replace("/", "|")
    folder = draw(tmp_path / "moths", label, "b")
    (folder / label / "0.png").rename(folder / label / "new\nline\x1b[2J.png")
    (folder / label / "new\nline\x1b[2J.png").write_bytes(b"")
    out = data("check", folder)[1]
    assert f"  {label}/new\\nline\\x1b[2J.png (test): empty file" in out.splitlines()
    assert "\x1b" not in out


def test_check_writes_every_row(data: Call, tmp_path: Path) -> None:
    folder = draw(tmp_path / "moths", "a", "b", each=12)
    for number in range(8):
        Image.fromarray(np.full((40, 40), number * 9, dtype=np.uint8)).save(folder / "a" / f"gray{number}.png")
    code, out = data("check", folder, "--near", "--distance", "0", "--to", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["file"] for row in rows if row["kind"] == "gray"] == [f"a/gray{number}.png" for number in range(8)]
    assert "and 3 more; --to FILE.csv names them all" in out
    assert code == int(any(row["kind"] == "near" for row in rows))


def test_check_refuses_a_file_that_it_could_not_write_before_it_starts(data: Call) -> None:
    for to, said in (("rows.txt", "must end in .csv or .json"), ("none/rows.csv", "there is no folder")):
        with pytest.raises(BadInput, match=said):
            data("check", "leaves", "--to", to)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real folders are not on this machine")
def test_check_of_a_real_folder(data: Call) -> None:
    code, out = data("check", SHARED / "grocery_store", "--near")
    assert code == 0
    assert "grocery_store: 1,539 images, 81 classes" in out


# ---- pack


def test_pack_tells_what_it_made_and_then_that_it_is_there(data: Call, tmp_path: Path) -> None:
    folder = draw(tmp_path / "moths", "a", "b")
    (folder / "a" / "[b]0.png").write_bytes(b"broken")
    code, out = data("pack", folder, draw(tmp_path / "ants", "a"), "--image-size", "16")
    assert code == 0
    assert "10 images of 32x24 px, 23.0 kB, 1 skipped" in out
    assert "images/s)" in out
    assert "  skipped a/[b]0.png: not an image of a known format" in out
    assert "ants: packed in" in out
    assert "moths: packed already: 10 images" in data("pack", folder, "--image-size", "16")[1]


# ---- clean


def test_clean_without_an_answer_only_shows(data: Call, tmp_path: Path) -> None:
    assert data("clean")[1].splitlines()[-1] == "nothing is kept"
    data("pack", draw(tmp_path / "moths", "a", "b"), "--image-size", "16")
    code, out = data("clean")
    assert code == 0
    assert out.rstrip().endswith("nothing was removed: --yes removes it")
    assert "moths" in out
    assert len(list((tmp_path / "cache" / "packs").glob("*/pack.json"))) == 1


def test_clean_removes_what_is_asked_for(data: Call, tmp_path: Path) -> None:
    for name in ("moths", "beetles"):
        data("pack", draw(tmp_path / name, "a", "b"), "--image-size", "16")
    assert "0 things" in data("clean", "moths", "--older", "1", "--yes")[1]
    code, out = data("clean", "moths", "--yes")
    assert code == 0
    assert "removed 1 thing" in out
    shown = data("clean")[1]
    assert "beetles" in shown
    assert "moths" not in shown
    assert (tmp_path / "moths" / "a" / "0.png").exists()
    data("clean", "--yes")
    assert list((tmp_path / "cache" / "packs").glob("*/")) == []


def test_clean_leaves_downloads_unless_told(data: Call, tmp_path: Path) -> None:
    archive = tmp_path / "root" / ".downloads" / "cub200" / "CUB_200_2011.tgz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"x")
    data("clean", "--yes", "--data-root", tmp_path / "root")
    assert archive.exists()
    data("clean", "--yes", "--downloads", "--data-root", tmp_path / "root")
    assert not archive.exists()


def test_clean_names_the_nearest_pack(data: Call) -> None:
    with pytest.raises(UnknownName, match="did you mean 'wings'"):
        data("clean", "wing")


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 1), (b"y\n", 0)])
def test_clean_asks_in_a_terminal(data: Call, tmp_path: Path, answer: bytes, left: int) -> None:
    data("pack", draw(tmp_path / "moths", "a", "b"), "--image-size", "16")
    keyboard, terminal = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "bench", "data", "clean", "moths"]
    with subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as p:
        os.write(keyboard, answer)
        out = p.communicate(timeout=60)[0].decode()
    os.close(keyboard)
    os.close(terminal)
    assert "remove 1 thing" in out
    assert len(list((tmp_path / "cache" / "packs").glob("*/pack.json"))) == left


def test_control_characters_are_spelled_out() -> None:
    assert visible("a\tb\x1b[2J\udcff é 猫") == "a\\tb\\x1b[2J\\udcff é 猫"


def test_clean_is_quick() -> None:
    began = time.process_time()
    assert CliRunner().invoke(app, ["data", "clean"]).exit_code == 0
    assert time.process_time() - began < 1
