"""Packs: the canvas, what is kept and skipped, one build for many openers, and recovery from cut-short builds."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from bench.cache import cache_folder
from bench.data import pack as packing
from bench.data import reading
from bench.data.build import choose_canvas
from bench.data.dataset import check_usable, resolve
from bench.data.decode import load
from bench.data.pack import Pack, Skipped, open_pack, pack_size
from bench.data.rows import stretch
from bench.data.source import Source
from bench.errors import BadData, BadInput
from bench.records import digest

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of ten 48x32 images; each image's gray value is its number times 10, plus 100 for class b."""
    for label, base in (("a", 0), ("b", 100)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(10):
            image = Image.new("L", (48, 32), base + 10 * number)
            image.save(tmp_path / "data" / label / f"{number}.png")
    return tmp_path / "data"


def pack_of(folder: Path, size: int = 16, **options: object) -> Pack:
    return open_pack(resolve(str(folder)).source, size, cache_folder(), **options)  # type: ignore[arg-type]


def test_a_pack_holds_every_image_in_its_row(folder: Path) -> None:
    pack = pack_of(folder)
    assert (pack.images.shape, pack.images.dtype) == ((20, 3, 16, 24), torch.uint8)
    assert pack.images[:, :, 0, 0].tolist() == [[v] * 3 for v in [*range(0, 100, 10), *range(100, 200, 10)]]
    assert pack.labels.tolist() == [0] * 10 + [1] * 10
    assert (pack.classes, pack.name, pack.skipped) == (("a", "b"), "data", ())
    assert torch.equal(pack.aspect, torch.full((20,), 1.5))
    assert pack.counts == {"unlabelled": 0, "train": 12, "val": 4, "test": 4}
    assert torch.cat([pack.rows(split) for split in ("train", "val", "test")]).sort()[0].tolist() == list(range(20))
    index = resolve(str(folder)).index
    assert pack.files == index.files
    for split in ("train", "val", "test"):
        assert [index.splits[row] for row in pack.rows(split)] == [split] * len(pack.rows(split))
    check_usable(pack, "evaluation")


def test_batches(folder: Path) -> None:
    pack = pack_of(folder)
    rows = torch.tensor([3, 0, 3])
    batch = pack.batch(rows)
    assert torch.equal(batch.pixels, pack.images[rows])
    assert (batch.aspect.shape, batch.aspect.dtype, len(batch)) == ((3,), torch.float32, 3)
    held = pack.on("cpu").batch(rows, "cpu")
    assert torch.equal(held.pixels, batch.pixels)


def test_writing_to_a_pack_does_not_reach_its_file(folder: Path) -> None:
    pack = pack_of(folder)
    pack.images[0] = 77
    assert pack_of(folder).images[0].max() == 0


def test_pretraining_never_sees_val_or_test(folder: Path) -> None:
    pack = pack_of(folder)
    assert torch.equal(pack.pretraining_rows(), pack.rows("train"))
    (folder / "unlabelled").mkdir()
    Image.new("RGB", (48, 32)).save(folder / "unlabelled" / "x.png")
    pack = pack_of(folder)
    assert torch.equal(pack.pretraining_rows(), pack.rows("unlabelled"))
    assert pack.labels[pack.pretraining_rows()].tolist() == [-1]


@pytest.mark.parametrize(
    ("sizes", "size", "canvas"),
    [
        ([(64, 64)], 64, (64, 64)),
        ([(64, 64)], 96, (64, 64)),
        ([(64, 64)], 48, (48, 48)),
        ([(150, 150)], 192, (150, 150)),
        ([(320, 160)], 96, (192, 96)),
        ([(160, 320)], 96, (96, 192)),
        ([(500, 375), (500, 375), (10, 900)], 96, (128, 96)),
        ([(1000, 10)], 96, (24, 10)),
        ([(100, 96)], 96, (96, 96)),
        ([(1, 1)], 96, (1, 1)),
        ([], 96, (96, 96)),
    ],
)
def test_the_canvas_follows_the_median(sizes: list[tuple[int, int]], size: int, canvas: tuple[int, int]) -> None:
    assert choose_canvas(sizes, size) == canvas


@pytest.mark.parametrize(("view", "size"), [(64, 96), (32, 48), (96, 144), (224, 336), (33, 56), (1, 8)])
def test_pack_size(view: int, size: int) -> None:
    assert pack_size(view) == size


def test_the_resampling_is_antialiased_and_upright(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    board = np.indices((128, 128)).sum(axis=0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "flat" / "board.png")
    half = np.zeros((128, 64, 3), np.uint8)
    half[:, :32] = 255  # stored with white left; upright it is 128 wide and white above
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("half.jpg", "half2.jpg", "half3.jpg"):
        Image.fromarray(half).save(tmp_path / "flat" / name, exif=exif)
    pack = pack_of(tmp_path / "flat", 16)
    assert pack.images.shape == (4, 3, 16, 32)
    assert pack.images[0].float().sub(127.5).abs().max() < 3
    assert pack.aspect.tolist() == [1, 2, 2, 2]
    assert pack.images[1, :, :6].min() > 240
    assert pack.images[1, :, -6:].max() < 15


def test_files_that_cannot_be_decoded_are_named_and_skipped(folder: Path) -> None:
    (folder / "a" / "3.png").write_bytes(b"")
    (folder / "a" / "4.png").write_bytes((folder / "a" / "4.png").read_bytes()[:40])
    (folder / "b" / "0.png").write_text("not a picture")
    (folder / "b" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    Image.new("L", (1, 1), 5).save(folder / "b" / "tiny.png")
    Image.new("L", (5000, 3), 5).save(folder / "b" / "wide.png")
    seen: list[tuple[int, int]] = []
    pack = pack_of(folder, progress=lambda done, total: seen.append((done, total)))
    reasons = {entry.file: entry.reason for entry in pack.skipped}
    assert set(reasons) == {"a/3.png", "a/4.png", "b/0.png", "b/gone.jpg"}
    assert reasons["a/3.png"] == "empty file"
    assert reasons["b/gone.jpg"] == "cannot be read: No such file or directory"
    assert seen == [(done, 23) for done in range(1, 24)]
    assert len(pack) == len(pack.files) == len(pack.aspect) == 19
    assert pack.images[:, 0, 0, 0].tolist() == [0, 10, 20, *range(50, 100, 10), *range(110, 200, 10), 5, 5]
    assert pack.aspect[-1] == pytest.approx(5000 / 3)
    assert pack.skipped == pack_of(folder).skipped
    assert isinstance(pack.skipped[0], Skipped)


def test_a_dataset_without_a_readable_image_is_one_error(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(BadData, match=r"'data' has no usable image$"):
        pack_of(tmp_path / "data")
    (tmp_path / "data" / "x.jpg").write_text("text")
    with pytest.raises(BadData, match=r"no usable image \(x.jpg: not an image of a known format\)"):
        pack_of(tmp_path / "data")
    assert [path.suffix for path in (cache / "packs").iterdir() if path.is_dir()] == []


def test_names_beyond_ascii_and_beyond_utf8(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("e\u0301 1.png", "\u6a39.png", os.fsdecode(b"\xff.png")):
        Image.new("L", (32, 32)).save(tmp_path / "data" / name, "PNG")
    (tmp_path / "data" / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    pack = pack_of(tmp_path / "data")
    assert set(pack.files) == {"\u00e9 1.png", "\u6a39.png", "\\udcff.png"}
    assert [entry.file for entry in pack.skipped] == ["\\udcfe.png"]


def test_what_lies_on_the_disk(folder: Path, cache: Path) -> None:
    pack_of(folder)
    (place,) = (path for path in (cache / "packs").iterdir() if path.is_dir())
    assert {path.name for path in place.iterdir()} == {"images.npy", "table.parquet", "pack.json"}
    assert np.load(place / "images.npy", allow_pickle=False).shape == (20, 3, 16, 24)
    table = pyarrow.parquet.read_table(place / "table.parquet")
    assert table.column_names == ["file", "class", "label", "split", "width", "height"]
    assert table.slice(12, 1).to_pylist()[0] | {"split": ""} == {
        "file": "b/2.png", "class": "b", "label": 1, "split": "", "width": 48, "height": 32
    }  # fmt: skip
    notes = json.loads((place / "pack.json").read_text())
    assert (notes["classes"], notes["metric"], notes["name"]) == (["a", "b"], "top1", "data")


def test_the_val_split_is_stored(folder: Path, cache: Path) -> None:
    dataset = resolve(str(folder))
    val = {file for file, split in zip(dataset.index.files, dataset.index.splits, strict=True) if split == "val"}
    pack_of(folder)
    (place,) = (path for path in (cache / "packs").iterdir() if path.is_dir())
    table = pyarrow.parquet.read_table(place / "table.parquet", filters=[("split", "=", "val")])
    assert set(table["file"].to_pylist()) == val
    assert len(val) == 4


def test_what_makes_another_pack(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = counted(monkeypatch)
    pack_of(folder)
    for module, name in ((reading.folder, "VERSION"), (packing, "PACK_VERSION")):
        monkeypatch.setattr(module, name, getattr(module, name) + 1)
        pack_of(folder)
        pack_of(folder)
    assert len(builds) == 3
    assert len([path for path in (cache / "packs").iterdir() if path.is_dir()]) == 3


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((500, 375), (128, 96)),
        ((500, 375), (448, 336)),
        ((20, 30), (64, 96)),
        ((1, 1), (24, 16)),
        ((5000, 3), (24, 16)),
    ],
)
def test_resampling_is_pillows_bicubic(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    ours = stretch(Image.fromarray(values), canvas)
    theirs = np.asarray(Image.fromarray(values).resize(canvas, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(ours.astype(int) - theirs).max() <= 2
    for value in (0, 1, 127, 255):
        assert set(stretch(Image.new("RGB", size, (value,) * 3), canvas).flat) == {value}


def test_a_picture_of_several_memory_blocks_is_packed() -> None:
    picture = Image.new("RGB", (3000, 2000), (10, 20, 30))
    with pytest.raises(ValueError, match=r"contiguous|blocks"):
        pyarrow.array(picture)
    assert [set(plane.flat) for plane in stretch(picture, (24, 16))] == [{10}, {20}, {30}]
    assert stretch(picture, picture.size).shape == (3, 2000, 3000)


def test_a_jpeg_decoded_at_half_its_scale_is_the_same_picture(tmp_path: Path) -> None:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    coarse.resize((512, 384), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=90)
    data = (tmp_path / "x.jpg").read_bytes()
    (half, size), (full, _) = load(data, (128, 96)), load(data)
    assert (half.size, size, full.size) == ((256, 192), (512, 384), (512, 384))
    away = np.abs(stretch(half, (128, 96)).astype(int) - stretch(full, (128, 96)))
    assert (away.mean() < 1, away.max() < 12) == (True, True)
    assert load(data, (192, 144))[0].size == (512, 384)  # half is only 1.33 times what is wanted


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count builds."""
    builds: list[int] = []
    real = packing.build

    def build(*arguments: object) -> None:
        builds.append(1)
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(packing, "build", build)
    return builds


def test_size_and_content_make_another_pack_and_the_place_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = counted(monkeypatch)
    pack_of(folder)
    pack_of(folder)
    assert len(builds) == 1
    folder = folder.rename(tmp_path / "moved")
    assert pack_of(folder).name == "moved"
    assert len(builds) == 1
    pack_of(folder, 24)
    Image.new("L", (48, 32), 3).save(folder / "a" / "0.png")
    assert pack_of(folder).images[0].max() == 3
    assert len(builds) == 3


def test_threads_build_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = counted(monkeypatch)
    source = resolve(str(folder)).source
    gate = threading.Barrier(4)

    def open_together(_: int) -> int:
        gate.wait()
        return int(open_pack(source, 16, cache).images.sum())

    with ThreadPoolExecutor(4) as pool:
        sums = set(pool.map(open_together, range(4)))
    assert len(sums) == len(builds) == 1


OPENER = """
import sys
from pathlib import Path
from bench.data.pack import open_pack
from bench.data.rows import stretch
from bench.data.source import Source
source = Source.model_validate_json(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
pack = open_pack(source, 16, Path(sys.argv[2]), lambda done, total: done == 1 and print("built"))
print(int(pack.images.sum()))
"""


KILLED = OPENER.replace('print("built")', "__import__('os')._exit(9)")


def test_a_killed_build_leaves_nothing_that_is_read(folder: Path, cache: Path) -> None:
    source = resolve(str(folder)).source
    command = [sys.executable, "-c", KILLED, source.model_dump_json(), str(cache)]
    killed = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert killed.returncode == 9
    assert [path.suffix for path in (cache / "packs").iterdir() if path.is_dir()] == [".tmp"]
    assert len(open_pack(source, 16, cache)) == 20
    assert [path.suffix for path in (cache / "packs").iterdir() if path.is_dir()] == [""]


SLOW = OPENER.replace("done == 1 and print(", "done == 3 and __import__('time').sleep(60) or print(")


def test_a_build_killed_from_outside_is_done_by_the_one_that_waits(folder: Path, cache: Path) -> None:
    source = resolve(str(folder)).source
    arguments = [source.model_dump_json(), str(cache)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SLOW, *arguments], **pipes) as builder:
        builder.stdin.write("go\n")
        builder.stdin.flush()
        assert [builder.stdout.readline() for _ in range(3)] == ["ready\n", "built\n", "built\n"]
        with subprocess.Popen([sys.executable, "-c", OPENER, *arguments], **pipes) as waiting:
            assert waiting.stdout.readline() == "ready\n"
            waiting.stdin.write("go\n")
            waiting.stdin.flush()
            builder.send_signal(signal.SIGKILL)
            said = waiting.communicate(timeout=60)[0].split()
    assert said == ["built", str(int(open_pack(source, 16, cache).images.sum()))]
    assert [path.suffix for path in (cache / "packs").iterdir() if path.is_dir()] == [""]


def test_several_processes_build_once(folder: Path, cache: Path) -> None:
    source = resolve(str(folder)).source
    command = [sys.executable, "-c", OPENER, source.model_dump_json(), str(cache)]
    others = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = []
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    for other in others:
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
    for other in others:
        said += other.communicate(timeout=60)[0].split()
    assert said.count("built") == 1
    assert len(set(said)) == 2  # that, and one sum of pixels


def test_a_lock_left_behind_does_not_block(folder: Path, cache: Path) -> None:
    place = cache / "packs" / digest([(source := resolve(str(folder)).source).fingerprint, 16, packing.PACK_VERSION])
    place.parent.mkdir(parents=True)
    place.with_name(f"{place.name}.lock").write_text("4711")
    assert len(open_pack(source, 16, cache)) == 20
    assert place.is_dir()


def test_a_pack_that_is_removed_while_it_is_open_keeps_working(folder: Path, cache: Path) -> None:
    pack = pack_of(folder)
    (place,) = (path for path in (cache / "packs").iterdir() if path.is_dir())
    place.rename(place.with_suffix(".gone"))
    shutil.rmtree(place.with_suffix(".gone"))
    assert pack.images[:, 0, 0, 0].tolist() == [*range(0, 100, 10), *range(100, 200, 10)]
    assert torch.equal(pack_of(folder).images, pack.images)


@pytest.mark.parametrize("damage", ["cut images", "no table", "cut table", "no notes", "cut notes", "empty folder"])
def test_a_damaged_pack_is_rebuilt(folder: Path, cache: Path, damage: str) -> None:
    whole = pack_of(folder).images.clone()
    (place,) = (path for path in (cache / "packs").iterdir() if path.is_dir())
    what, _, which = damage.partition(" ")
    names = {"images": "images.npy", "table": "table.parquet", "notes": "pack.json"}
    for name in [names[which]] if which in names else names.values():
        data = (place / name).read_bytes()
        (place / name).unlink()
        if what == "cut":
            (place / name).write_bytes(data[: len(data) // 2])
    assert torch.equal(pack_of(folder).images, whole)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(folder: Path, cache: Path) -> None:
    source = resolve(str(folder)).source
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # bytes per file; the images take 23 kB
    try:
        with pytest.raises(BadInput, match=r"cannot hold the pack of 'data': File too large; set BENCH_CACHE"):
            open_pack(source, 16, cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not any(path.is_dir() for path in (cache / "packs").iterdir())
    assert len(open_pack(source, 16, cache)) == 20


def test_a_disk_without_room_is_told_before_anything_is_decoded(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=20_000))  # the images take 23,040 bytes
    seen: list[int] = []
    with pytest.raises(BadInput, match=r"'data': it needs 0.00 GB and 0.00 GB are free; set BENCH_CACHE"):
        open_pack(resolve(str(folder)).source, 16, cache, lambda done, _: seen.append(done))
    assert seen == []
    assert not any(path.is_dir() for path in (cache / "packs").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to become")
def test_a_cache_that_may_only_be_read(folder: Path) -> None:
    source = resolve(str(folder)).source
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        cache.chmod(0o755)
        whole = open_pack(source, 16, cache)
        os.seteuid(65534)
        try:
            assert torch.equal(open_pack(source, 16, cache).images, whole.images)
            with pytest.raises(BadInput, match=r"cannot hold the pack of 'data': Permission denied; set BENCH_CACHE"):
                open_pack(source, 24, cache)
        finally:
            os.seteuid(0)


def test_a_cache_that_cannot_be_written_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cache folder .*file: .*(Not a directory|File exists)"):
        open_pack(resolve(str(folder)).source, 16, tmp_path / "file")


def test_a_failing_progress_display_leaves_no_pack(folder: Path, cache: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_of(folder, progress=stop)
    assert not any(path.is_dir() for path in (cache / "packs").iterdir())
    assert len(pack_of(folder)) == 20


def test_data_that_changed_since_it_was_resolved_is_refused(folder: Path, cache: Path) -> None:
    source = resolve(str(folder)).source
    (folder / "a" / "0.png").unlink()
    with pytest.raises(BadData, match="has changed since it was resolved"):
        open_pack(source, 16, cache)


def test_a_size_below_8_is_refused(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"pack size: must be at least 8 px \(given: 4\)"):
        pack_of(folder, 4)


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("BENCH_CACHE")
    assert cache_folder().name == "bench"


@pytest.mark.parametrize(("size", "side"), [(96, 64), (64, 64), (48, 48)])
def test_a_builtin_family_is_packed(cache: Path, monkeypatch: pytest.MonkeyPatch, size: int, side: int) -> None:
    from bench.data import builtin

    def draw(_: str, split: str) -> tuple[np.ndarray, np.ndarray]:
        fill = builtin.SPLITS.index(split)
        labels = np.full(4, -1) if split == "unlabelled" else np.arange(4) % 3
        return np.full((4, 3, 64, 64), fill, np.uint8), labels.astype(np.int64)

    monkeypatch.setattr(builtin, "draw_split", draw)
    monkeypatch.setattr(builtin, "split_labels", lambda family, split: draw(family, split)[1])
    source = Source(
        name="mine", reader="builtin", location="wings", fingerprint=builtin.fingerprint("wings"), metric="top1"
    )
    pack = open_pack(source, size, cache)
    assert pack.images.shape == (16, 3, side, side)
    assert pack.images.amax(dim=(1, 2, 3)).tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert pack.counts == {"unlabelled": 4, "train": 4, "val": 4, "test": 4}
    assert pack.labels.tolist() == [-1] * 4 + [0, 1, 2, 0] * 3
    assert (pack.classes, set(pack.aspect.tolist())) == (builtin.FAMILIES["wings"].classes, {1.0})


def test_a_real_folder_is_packed_quickly() -> None:
    if not (SHARED / "coffee_leaf_bracol").is_dir():
        pytest.skip("coffee_leaf_bracol is not beside the repository")
    source = resolve(str(SHARED / "coffee_leaf_bracol")).source
    begin = time.monotonic()
    pack = open_pack(source, 64, cache_folder())
    assert time.monotonic() - begin < 30  # 2 s on one core
    assert (pack.images.shape, pack.skipped) == ((1685, 3, 64, 128), ())
    assert len(pack.rows("train")) + len(pack.rows("val")) == 1433
