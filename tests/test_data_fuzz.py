"""Damaged images and tables: one clear error or a counted skip, never a crash, a hang, or a half-made pack.

The slow run makes 2,000 mutations: `pytest tests/test_data_fuzz.py -m slow -s` shows what came of them.
"""

import io
import itertools
import json
import logging
import re
import resource
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from bench.cache import cache_folder
from bench.data import matfile
from bench.data.dataset import resolve
from bench.data.pack import open_pack
from bench.data.releases import layout_names
from bench.data.tables import matlab
from bench.data.tree import open_tree
from bench.errors import BadInput, BenchError

SECONDS = 10.0  # of processor time that one damaged file may take; a sound one takes hundredths
MEMORY = 256 << 20  # bytes that Python and numpy may hold for a table at once
PIXELS = 2 << 30  # bytes by which an image of MAX_PIXELS may raise the process's peak


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and no log lines about counts that differ from the card's."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# ---- mutations

Edit = tuple[str, float, int, bytes]  # what, where in 0..1, how many bytes, which bytes
NUMBERS = (b"0", b"-1", b"99999", b"9" * 30, b"1e308", b"nan", b"9" * 5000, b"2147483648")
WORDS = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x00\x00\x00\x10", b"\x00\x00\x00\x00")


OPERATIONS = ("flip", "overwrite", "insert", "cut", "remove", "duplicate", "repeat", "size", "digits")
PLACES = st.one_of(st.floats(0, 1), st.floats(0, 0.1))  # headers decide more than what follows
EDITS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), PLACES, st.integers(1, 96), st.binary(max_size=8)), min_size=1, max_size=4
)


def edited(data: bytes, what: str, at: int, length: int, some: bytes) -> bytes:
    """`data` with one operation at a place."""
    chunk, rest = data[at : at + length], data[at + length :]
    match what:
        case "flip":
            return data[:at] + bytes(one ^ (1 << length % 8) for one in data[at : at + 1]) + data[at + 1 :]
        case "overwrite":
            return data[:at] + some + data[at + len(some) :]
        case "insert":
            return data[:at] + some + data[at:]
        case "cut":
            return data[:at]
        case "remove":
            return data[:at] + rest
        case "duplicate":
            return data[:at] + chunk * 2 + rest
        case "repeat":
            return data[:at] + chunk * 500 + rest
        case "size":  # where binary formats keep their sizes
            return data[: at & ~3] + WORDS[length % len(WORDS)] + data[(at & ~3) + 4 :]
        case "digits":
            found = re.compile(rb"\d+").search(data, at)
            number = NUMBERS[length % len(NUMBERS)]
            return data[: found.start()] + number + data[found.end() :] if found else data
    raise AssertionError(what)


def mutate(data: bytes, edits: list[Edit]) -> bytes:
    for what, where, length, some in edits:
        data = edited(data, what, int(where * len(data)), length, some)
    return data


def explore(target: str, count: int, check: Callable[[list[Edit]], None]) -> None:
    """Call `check` with `count` different lists of edits, the same ones on every run."""

    @seed(zlib.crc32(target.encode()))
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(EDITS)
    def one(edits: list[Edit]) -> None:
        check(edits)

    one()


# ---- what may come of it


class Outcome(NamedTuple):
    """`kind`: "pack", "pack with skips", or the error's class; `text` its message."""

    kind: str
    text: str


def outcome(reference: str, root: Path, folder: Path) -> Outcome:
    """Resolve and pack; anything but a BenchError that names a file passes through, and fails the test."""
    begin = time.process_time()
    try:
        dataset = resolve(reference, str(root))
        pack = open_pack(dataset.source, 8, cache_folder(), processes=2)
    except BenchError as error:
        found = Outcome(type(error).__name__, str(error))
        assert any(name in found.text for name in (str(folder), ".toml: ", ".jpg")), found.text
        assert len(found.text) < 2000, found.text
    else:
        assert len(pack) + len(pack.skipped) == len(dataset.index)
        assert len(pack) == len(pack.images) == len(pack.labels) == len(set(pack.files))
        found = Outcome("pack with skips" if pack.skipped else "pack", "; ".join(one.reason for one in pack.skipped))
    assert time.process_time() - begin < SECONDS
    assert not list(cache_folder().glob("packs/*.tmp"))
    return found


def report(target: str, tally: Counter[str], began: float) -> None:
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.items()))
    print(f"\n{target}: {found} ({time.perf_counter() - began:.1f} s)", end="")


# ---- images

FORMATS = ("jpg", "progressive.jpg", "png", "palette.png", "deep.png", "webp", "bmp", "gif", "tif", "lzw.tiff", "ppm")
EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # to be turned by 90 degrees


@cache
def image_bytes(name: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    options: dict[str, Any] = {}
    if name == "palette.png":
        picture, options = picture.quantize(16), {"transparency": 3}
    elif name == "deep.png":
        picture = Image.fromarray(values[:, :, 0].astype(np.uint16) * 257)
    elif name == "progressive.jpg":
        options = {
            "progressive": True,
            "exif": bytes.fromhex("457869660000") + b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0" * 2,
        }
    elif name == "lzw.tiff":
        options = {"compression": "tiff_lzw"}
    elif name == "gif":
        options = {"save_all": True, "append_images": [picture.rotate(90)]}
    stream = io.BytesIO()
    picture.save(
        stream, {"jpg": "JPEG", "tif": "TIFF"}.get(name.rpartition(".")[2], name.rpartition(".")[2]), **options
    )
    return stream.getvalue()


def check_images(name: str, tmp_path: Path, count: int) -> Counter[str]:
    """Damage one image of an unlabelled folder of two."""
    tally: Counter[str] = Counter()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "sound.png").write_bytes(image_bytes("png"))
    reasons: Counter[str] = Counter()

    def check(edits: list[Edit]) -> None:
        (folder / f"x.{name}").write_bytes(mutate(image_bytes(name), edits))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = outcome(str(folder), tmp_path, folder)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < PIXELS
        assert found.kind in ("pack", "pack with skips")
        tally[found.kind] += 1
        reasons[found.text] += 1

    explore(name, count, check)
    return tally


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_images_are_skipped_and_counted(name: str, tmp_path: Path) -> None:
    tally = check_images(name, tmp_path, 3)
    assert sum(tally.values()) >= 3


# ---- tables: a miniature of each release


def jpeg(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes("jpg") + path.name.encode())


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def save(path: Path, **variables: Any) -> None:
    """A .mat file; uncompressed, for otherwise every mutation only breaks the compression."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables)


def cells(values: list[str]) -> Any:
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column


VOC = """<annotation><object><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>22</ymax></bndbox></object>
</annotation>
"""


def cub200(folder: Path) -> None:
    birds = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
    files = [f"{bird}/{number}.jpg" for bird in birds for number in range(4)]
    for file in files:
        jpeg(folder / "images" / file)
    write(folder / "images.txt", *(f"{key} {file}" for key, file in enumerate(files, start=1)))
    write(folder / "image_class_labels.txt", *(f"{key} {int(file[:3])}" for key, file in enumerate(files, start=1)))
    write(folder / "train_test_split.txt", *(f"{key} {int(key % 4 != 0)}" for key in range(1, 9)))
    write(folder / "classes.txt", *(f"{int(bird[:3])} {bird}" for bird in birds))
    write(folder / "bounding_boxes.txt", *(f"{key} 8.0 2.0 16.0 20.0" for key in range(1, 9)))


def dogs(folder: Path) -> None:
    breeds = ("n02085620-Chihuahua", "n02087046-toy_terrier")
    for table, numbers in (("train_list.mat", (1, 2, 3)), ("test_list.mat", (4, 5))):
        files = [f"{breed}/{breed[:9]}_{number}.jpg" for breed in breeds for number in numbers]
        for file in files:
            jpeg(folder / "Images" / file)
            write(folder / "Annotation" / file.removesuffix(".jpg"), VOC)
        labels = np.array([[breeds.index(file.partition("/")[0]) + 1.0] for file in files])
        save(
            folder / table, file_list=cells(files), annotation_list=cells([file[:-4] for file in files]), labels=labels
        )


def cassava(folder: Path) -> None:
    names = [f"{number}.jpg" for number in range(20)]
    for name in names:
        jpeg(folder / "train_images" / name)
    write(folder / "train.csv", "image_id,label", *(f"{name},{number % 5}" for number, name in enumerate(names)))
    diseases = ["Blight (CBB)", "Streak (CBSD)", "Mottle (CGM)", "Mosaic (CMD)", "Healthy"]
    write(folder / "label_num_to_disease_map.json", json.dumps(dict(enumerate(diseases))))


def aircraft(folder: Path) -> None:
    classes = ("Boeing 707-320", "DC-3")
    write(folder / "data" / "variants.txt", *classes)
    boxes = []
    for position, split in enumerate(("train", "val", "test")):
        images = [f"{1000 * position + number:07d}" for number in range(4)]
        for image in images:
            jpeg(folder / "data" / "images" / f"{image}.jpg")
            boxes.append(f"{image} 2 3 30 20")
        write(
            folder / "data" / f"images_variant_{split}.txt",
            *(f"{image} {classes[number % 2]}" for number, image in enumerate(images)),
        )
    write(folder / "data" / "images_box.txt", *boxes)


def flowers102(folder: Path) -> None:
    for number in range(1, 13):
        jpeg(folder / "jpg" / f"image_{number:05d}.jpg")
    save(folder / "imagelabels.mat", labels=np.array([[1 + number % 2 for number in range(12)]], dtype=np.uint8))
    parts = {"trnid": (1, 5), "valid": (5, 9), "tstid": (9, 13)}
    save(folder / "setid.mat", **{name: np.arange(*part, dtype=np.uint16)[None] for name, part in parts.items()})


def pets(folder: Path) -> None:
    breeds = ("Abyssinian", "english_cocker_spaniel")
    for table, numbers in (("trainval", (1, 2, 3)), ("test", (4, 5))):
        images = [f"{breed}_{number}" for breed in breeds for number in numbers]
        for image in images:
            jpeg(folder / "images" / f"{image}.jpg")
            if table == "trainval":
                write(folder / "annotations" / "xmls" / f"{image}.xml", VOC)
        lines = [f"{image} {1 + breeds.index(image.rpartition('_')[0])} 1 1" for image in images]
        write(folder / "annotations" / f"{table}.txt", *lines)


def cars(folder: Path) -> None:
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], dtype=object)
    save(folder / "devkit" / "cars_meta.mat", class_names=names)
    kinds = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    tables = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    for split, table in tables.items():
        rows = [(2, 3, 30, 20, 1 + number % 2, f"{number + 1:05d}.jpg") for number in range(6)]
        for row in rows:
            jpeg(folder / f"cars_{split}" / str(row[-1]))
        save(folder / table, annotations=np.array([rows], dtype=kinds))


def food101(folder: Path) -> None:
    for table, numbers in (("train", (1, 2, 3)), ("test", (4, 5))):
        listed = {dish: [f"{dish}/{number}" for number in numbers] for dish in ("apple_pie", "waffles")}
        for file in itertools.chain(*listed.values()):
            jpeg(folder / "images" / f"{file}.jpg")
        write(folder / "meta" / f"{table}.json", json.dumps(listed))


def folder_with_splits(folder: Path) -> None:
    lines = []
    for number, split in enumerate(["train"] * 3 + ["val"] * 2 + ["test"] * 2 + ["unlabelled"]):
        for label in ("oak", "elm"):
            jpeg(folder / label / f"{number}.jpg")
            lines.append(f"{label}/{number}.jpg,{label},{split}")
    write(folder / "splits.csv", "file,class,split", *lines)


class Release(NamedTuple):
    """How to make a miniature, what to call it, and its tables."""

    make: Callable[[Path], None]
    reference: str
    tables: tuple[str, ...]


RELEASES = {
    "aircraft": Release(
        aircraft,
        "aircraft?boxes=true",
        ("data/variants.txt", "data/images_variant_train.txt", "data/images_variant_test.txt", "data/images_box.txt"),
    ),
    "cars": Release(
        cars,
        "cars?boxes=true",
        ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
    ),
    "cassava": Release(cassava, "cassava", ("train.csv", "label_num_to_disease_map.json")),
    "cub200": Release(
        cub200,
        "cub200?boxes=true",
        ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "bounding_boxes.txt"),
    ),
    "dogs": Release(
        dogs,
        "dogs?boxes=true",
        ("train_list.mat", "test_list.mat", "Annotation/n02085620-Chihuahua/n02085620_1"),
    ),
    "flowers102": Release(flowers102, "flowers102", ("imagelabels.mat", "setid.mat")),
    "food101": Release(food101, "food101", ("meta/train.json", "meta/test.json")),
    "pets": Release(
        pets,
        "pets?boxes=true",
        ("annotations/trainval.txt", "annotations/test.txt", "annotations/xmls/Abyssinian_1.xml"),
    ),
    "folder": Release(folder_with_splits, "", ("splits.csv",)),
}
TABLES = [(name, table) for name, release in RELEASES.items() for table in release.tables]


def test_every_layout_is_fuzzed() -> None:
    assert set(layout_names()) == set(RELEASES) - {"folder"}


def made(name: str, tmp_path: Path) -> tuple[str, Path]:
    """A sound miniature: its reference and its folder."""
    release = RELEASES[name]
    folder = tmp_path / "root" / name
    release.make(folder)
    return release.reference or str(folder), folder


@pytest.mark.parametrize("name", RELEASES)
def test_the_miniatures_are_sound(name: str, tmp_path: Path) -> None:
    reference, folder = made(name, tmp_path)
    assert outcome(reference, folder.parent, folder) == Outcome("pack", "")


def check_tables(name: str, table: str, tmp_path: Path, count: int) -> Counter[str]:
    reference, folder = made(name, tmp_path)
    sound = (folder / table).read_bytes()
    outcome(reference, folder.parent, folder)  # libraries are imported now, which takes memory and time too
    tally: Counter[str] = Counter()

    def check(edits: list[Edit]) -> None:
        (folder / table).write_bytes(mutate(sound, edits))
        tracemalloc.start()
        try:
            found = outcome(reference, folder.parent, folder)
            assert tracemalloc.get_traced_memory()[1] < MEMORY
        finally:
            tracemalloc.stop()
        tally[found.kind] += 1

    explore(f"{name}/{table}", count, check)
    return tally


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_damaged_tables_are_one_error_or_counted(name: str, table: str, tmp_path: Path) -> None:
    assert sum(check_tables(name, table, tmp_path, 3).values()) >= 3


# ---- 2,000 mutations

EACH = -(-2000 // (len(TABLES) + len(FORMATS)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", FORMATS)
def test_many_damaged_images(name: str, tmp_path: Path) -> None:
    began = time.perf_counter()
    report(name, check_images(name, tmp_path, EACH), began)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "table"), TABLES)
def test_many_damaged_tables(name: str, table: str, tmp_path: Path) -> None:
    began = time.perf_counter()
    report(f"{name}/{table}", check_tables(name, table, tmp_path, EACH), began)


# ---- MATLAB files that were made to do harm


def element(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def array(kind: int, dims: tuple[int, ...], *values: bytes, name: bytes = b"labels") -> bytes:
    """One variable; `kind` is MATLAB's class of array: 1 cell, 6 double."""
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(dims)}i", *dims))
    return element(14, head + element(1, name) + b"".join(values))


def matlab_file(*variables: bytes) -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\x01IM" + b"".join(variables)


def nested(depth: int) -> bytes:
    inner = array(6, (1, 1), element(9, bytes(8)), name=b"")
    for _ in range(depth):
        inner = array(1, (1, 1), inner, name=b"")
    return array(1, (1, 1), inner)


def zipped(body: bytes) -> bytes:
    packed = zlib.compress(body, 9)
    return struct.pack("<II", 15, len(packed)) + packed


HARMFUL = {
    "dimensions of 16 GiB": lambda: array(6, (2**31 - 1, 1), element(9, bytes(8))),
    "cells of 16 GiB": lambda: array(1, (2**31 - 1, 1)),
    "dimensions below 0": lambda: array(6, (-1, -1), element(9, bytes(8))),
    "an element of 4 GiB": lambda: array(6, (1, 1), struct.pack("<II", 9, 2**32 - 1)),
    "an unknown type": lambda: array(6, (1, 1), element(99, bytes(8))),
    "an unknown class": lambda: array(77, (1, 1), element(9, bytes(8))),
    "a function": lambda: array(16, (1, 1), element(9, bytes(8))),
    "an object": lambda: array(3, (1, 1), element(9, bytes(8))),
    "5,000 cells, each in another": lambda: nested(5000),
    "16 MiB in 16 KiB": lambda: zipped(struct.pack("<II", 14, 16 << 20) + bytes(16 << 20)),
    "a zip in a zip": lambda: zipped(zipped(nested(1))),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_matlab_file_is_refused_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matfile, "MAX_BYTES", 4 << 20)
    (tmp_path / "x.mat").write_bytes(matlab_file(HARMFUL[name]()))
    begin = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=r"x\.mat: not a readable MATLAB file: "):
            matlab(open_tree(str(tmp_path)), "x.mat", "labels")
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - begin < SECONDS


@pytest.mark.parametrize("compressed", [False, True])
def test_what_scipy_writes_is_read(compressed: bool, tmp_path: Path) -> None:
    cell = np.empty((2, 2), dtype=object)
    cell[:] = [["ab", np.zeros((0, 0))], [np.array([1 + 2j]), {"field": "é", "number": np.uint8(3)}]]
    values = {"labels": np.arange(5), "cell": cell, "text": "abc", "empty": np.zeros((0, 3)), "flags": np.ones(2, bool)}
    scipy.io.savemat(tmp_path / "x.mat", values, do_compression=compressed)
    tree = open_tree(str(tmp_path))
    assert matlab(tree, "x.mat", "labels").tolist() == [0, 1, 2, 3, 4]
    assert matlab(tree, "x.mat", "cell")[0, 0] == "ab"
    assert matlab(tree, "x.mat", "cell")[1, 1]["field"] == "é"
    assert (str(matlab(tree, "x.mat", "text")), matlab(tree, "x.mat", "empty").size) == ("abc", 0)
