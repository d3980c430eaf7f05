"""What is kept on this machine: packs, leftovers, digests, downloads; and that removing them harms no one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from bench.data.dataset import resolve
from bench.data.pack import Pack, open_pack
from bench.data.shelf import Kept, on_shelf, packs_of, remove
from bench.errors import UnknownName
from bench.shelfsheet import DAY, Wish, amount, check_names


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BENCH_CARDS", raising=False)
    return tmp_path / "cache"


def packed(tmp_path: Path, cache: Path, name: str = "birds", size: int = 16) -> Pack:
    dice = np.random.default_rng(len(name))
    for label in "ab":
        (tmp_path / name / label).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            pixels = dice.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            if not (tmp_path / name / label / f"{number}.png").exists():
                Image.fromarray(pixels).save(tmp_path / name / label / f"{number}.png")
    return open_pack(resolve(str(tmp_path / name)).source, size, cache, processes=1)


def only(shelf: list[Kept], kind: str) -> Kept:
    (one,) = [kept for kept in shelf if kept.kind == kind]
    return one


def test_an_empty_shelf_is_empty(cache: Path, tmp_path: Path) -> None:
    assert on_shelf(cache, str(tmp_path / "nowhere")) == []
    assert on_shelf(cache, "s3://bucket/data") == []
    assert not cache.exists()


def test_a_pack_is_described_by_its_own_files(tmp_path: Path, cache: Path) -> None:
    before = time.time()
    pack = packed(tmp_path, cache)
    kept = only(on_shelf(cache), "pack")
    _, _, height, width = pack.images.shape
    assert (kept.name, kept.canvas, kept.images, kept.busy) == ("birds", (width, height), 12, False)
    assert kept.bytes == sum(file.stat().st_size for file in kept.path.iterdir())
    assert before - 2 < kept.made <= kept.used


def test_packs_of_one_dataset_and_of_its_options(tmp_path: Path, cache: Path) -> None:
    packed(tmp_path, cache)
    packed(tmp_path, cache, size=8)
    packed(tmp_path, cache, "beetles")
    assert [min(kept.canvas) for kept in packs_of("birds", cache)] == [8, 16]
    assert packs_of("bird", cache) == []
    option = Kept("pack", cache, "cub200?boxes=true", 1, 0, 0)
    assert option.belongs_to("cub200")
    assert option.belongs_to("cub200?boxes=true")
    assert not option.belongs_to("cub200?boxes=false")


def test_opening_a_pack_is_using_it(tmp_path: Path, cache: Path) -> None:
    packed(tmp_path, cache)
    kept = only(on_shelf(cache), "pack")
    for path in (kept.path, kept.path / "pack.json"):
        os.utime(path, (1e9, 1e9))
    assert only(on_shelf(cache), "pack").used == 1e9
    packed(tmp_path, cache)
    again = only(on_shelf(cache), "pack")
    assert again.made == 1e9
    assert again.used > time.time() - 60


def test_a_removed_pack_is_gone_and_can_be_made_again(tmp_path: Path, cache: Path) -> None:
    packed(tmp_path, cache)
    assert remove(only(on_shelf(cache), "pack"))
    assert [kept.kind for kept in on_shelf(cache)] == ["digests"]
    assert len(packed(tmp_path, cache)) == 12


def test_a_reader_keeps_the_pack_that_it_opened(tmp_path: Path, cache: Path) -> None:
    pack = packed(tmp_path, cache)
    expected = pack.images.clone()
    reader = packed(tmp_path, cache)
    assert remove(only(on_shelf(cache), "pack"))
    assert bool((reader.images == expected).all())


def test_a_pack_is_out_of_reach_before_any_file_of_it_is_deleted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed(tmp_path, cache)
    kept = only(on_shelf(cache), "pack")
    deleted: list[Path] = []

    def look(path: Path, **_: bool) -> None:
        if path.exists():
            assert not kept.path.exists()
            deleted.append(path)

    monkeypatch.setattr("bench.data.shelf.shutil.rmtree", look)
    assert remove(kept)
    assert deleted == [kept.path.with_name(f"{kept.path.name}.gone")]


def test_what_a_killed_removal_left_is_a_leftover_and_goes(tmp_path: Path, cache: Path) -> None:
    packed(tmp_path, cache)
    kept = only(on_shelf(cache), "pack")
    kept.path.rename(kept.path.with_name(f"{kept.path.name}.gone"))
    packed(tmp_path, cache)
    shelf = on_shelf(cache)
    assert remove(only(shelf, "leftover"))
    assert [one.kind for one in on_shelf(cache)] == ["pack", "digests"]


HOLD = """
import sys, time
from pathlib import Path
from filelock import FileLock
with FileLock(sys.argv[1]):
    Path(sys.argv[2]).mkdir(exist_ok=True)
    (Path(sys.argv[2]) / "images.npy").write_bytes(b"half")
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_build_under_way_is_left_and_a_killed_one_is_a_leftover(cache: Path) -> None:
    place = cache / "packs" / "0123abcd"
    place.parent.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, f"{place}.lock", f"{place}.tmp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as builder:
        try:
            assert builder.stdout is not None
            assert builder.stdout.readline() == "held\n"
            building = only(on_shelf(cache), "leftover")
            assert building.busy
            assert Wish().stays(building, time.time())
            assert not remove(building)
            assert (building.path / "images.npy").read_bytes() == b"half"
        finally:
            builder.kill()
    left = only(on_shelf(cache), "leftover")
    assert not left.busy
    assert remove(left)
    assert not left.path.exists()


def test_a_lock_is_free_again_after_a_look(tmp_path: Path, cache: Path) -> None:
    packed(tmp_path, cache)
    kept = only(on_shelf(cache), "pack")
    with FileLock(f"{kept.path}.lock", timeout=0):
        assert only(on_shelf(cache), "pack").busy


@pytest.mark.parametrize("damage", ["notes", "array", "lost"])
def test_a_damaged_pack_is_a_leftover(tmp_path: Path, cache: Path, damage: str) -> None:
    packed(tmp_path, cache)
    kept = only(on_shelf(cache), "pack")
    if damage == "notes":
        (kept.path / "pack.json").write_text("[1, 2")
    elif damage == "array":
        (kept.path / "images.npy").write_bytes(b"\x93NUMPY")
    else:
        (kept.path / "images.npy").unlink()
    left = only(on_shelf(cache), "leftover")
    assert left.path == kept.path
    assert remove(left)


def test_downloads_and_a_broken_unpacking_are_on_the_shelf(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "root"
    for file, size in (
        (".downloads/cub200/CUB_200_2011.tgz.part", 1000),
        (".cub200.partial/images/a.jpg", 300),
        ("dogs/Images/b.jpg", 50),
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x" * size)
    shelf = on_shelf(cache, str(root))
    assert [(kept.kind, kept.name, kept.bytes) for kept in shelf] == [
        ("leftover", "cub200", 300),
        ("download", "cub200", 1000),
    ]
    with FileLock(root / ".downloads" / "cub200.lock"):
        assert all(kept.busy for kept in on_shelf(cache, str(root)))
        assert not any(remove(kept) for kept in shelf)
    assert all(remove(kept) for kept in shelf)
    assert (root / "dogs/Images/b.jpg").exists()


def test_a_link_in_the_cache_is_not_followed(tmp_path: Path, cache: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (cache / "packs").mkdir(parents=True)
    (cache / "packs" / "0123").symlink_to(precious, target_is_directory=True)
    assert on_shelf(cache) == []


def test_what_is_wished_for() -> None:
    now = 100 * DAY
    old = Kept("pack", Path("a"), "birds", 10, 0, now - 8 * DAY)
    new = Kept("pack", Path("b"), "birds", 10, 0, now - 6 * DAY)
    archive = Kept("download", Path("c"), "birds", 10, 0, 0)
    assert [Wish().stays(kept, now) for kept in (old, new)] == ["", ""]
    assert [bool(Wish(older=7).stays(kept, now)) for kept in (old, new)] == [False, True]
    assert [bool(Wish(("wings",)).stays(kept, now)) for kept in (old, archive)] == [True, True]
    assert Wish(("birds",)).stays(archive, now) == "--downloads"
    assert Wish(("birds",), downloads=True).stays(archive, now) == ""
    assert amount([old]) == "1 thing, 10 bytes"


def test_a_wrong_name_has_the_nearest() -> None:
    shelf = [Kept("pack", Path("a"), "my_birds", 10, 0, 0)]
    check_names(["my_birds", "cub200"], shelf)
    with pytest.raises(UnknownName, match="did you mean 'my_birds'"):
        check_names(["my_brids"], shelf)
