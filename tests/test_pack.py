"""Packs: the canvas, what is kept and skipped, one build for many openers, and recovery from cut-short builds."""

import json
import os
import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from bench.data import pack as packing
from bench.data.build import choose_canvas
from bench.data.dataset import check_usable, resolve
from bench.data.pack import Pack, Skipped, cache_folder, open_pack, pack_size
from bench.data.source import Source
from bench.errors import BadData, BadInput

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
from bench.data.source import Source
source = Source.model_validate_json(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
pack = open_pack(source, 16, Path(sys.argv[2]), lambda done, total: done == 1 and print("built"))
print(int(pack.images.sum()))
"""


def test_processes_build_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds = counted(monkeypatch)
    source = resolve(str(folder)).source
    command = [sys.executable, "-c", OPENER, source.model_dump_json(), str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("go\n")
        other.stdin.flush()
        here = int(open_pack(source, 16, cache).images.sum())
        said = other.communicate(timeout=60)[0].split()
    assert said.count("built") + len(builds) == 1
    assert said[-1] == str(here)


KILLED = OPENER.replace('print("built")', "__import__('os')._exit(9)")


def test_a_killed_build_leaves_nothing_that_is_read(folder: Path, cache: Path) -> None:
    source = resolve(str(folder)).source
    command = [sys.executable, "-c", KILLED, source.model_dump_json(), str(cache)]
    killed = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert killed.returncode == 9
    assert [path.suffix for path in (cache / "packs").iterdir() if path.is_dir()] == [".tmp"]
    assert len(open_pack(source, 16, cache)) == 20
    assert [path.suffix for path in (cache / "packs").iterdir() if path.is_dir()] == [""]


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
