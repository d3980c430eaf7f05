"""Folders as datasets: layouts, splits.csv and its faults, cuts, fingerprints, odd trees, and decoding."""

import io
import logging
import os
import random
import shutil
import struct
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import decode as decoding
from bench.data import tree as trees
from bench.data.dataset import check_usable, resolve
from bench.data.decode import Unreadable, decode, load, quiet, true_size
from bench.data.index import Index, cut
from bench.data.reading import Content, read_content
from bench.data.tree import open_tree
from bench.errors import BadData, BadInput

SHARED = Path(__file__).parents[2] / "shared" / "data"
BYTES = b"not looked at by the reader of folders"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plant(root: Path, *files: str) -> Path:
    """Make files (never decoded here) below root/data."""
    for file in files:
        path = root / "data" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BYTES + file.encode("utf-8", "surrogateescape"))
    return root / "data"


def many(*folder_names: str, count: int = 10) -> list[str]:
    return [f"{name}/{number:02d}.jpg" for name in folder_names for number in range(count)]


def read_folder(folder: Path, cache: Path) -> Content:
    return read_content(open_tree(str(folder)), cache)


def index(folder: Path) -> Index:
    return read_folder(folder, Path(os.environ["BENCH_CACHE"])).index


def in_split(found: Index, split: str) -> set[str]:
    return {file for file, one in zip(found.files, found.splits, strict=True) if one == split}


# ---- layouts


def test_class_folders_are_cut_60_20_20_per_class(tmp_path: Path) -> None:
    found = index(plant(tmp_path, *many("oak", "elm"), *many("fir", count=20)))
    assert found.classes == ("elm", "fir", "oak")
    for split, share in (("train", 6), ("val", 2), ("test", 2)):
        assert Counter(found.labels_of(split).tolist()) == {0: share, 1: 2 * share, 2: share}


def test_the_cut_depends_on_names_only(tmp_path: Path) -> None:
    files = many("oak", "elm")
    forward = index(plant(tmp_path / "a", *files))
    backward = index(plant(tmp_path / "b", *reversed(files)))
    assert forward.splits == backward.splits
    members = [f"{number}.jpg" for number in range(50)]
    assert cut(members, 0.2) == cut(members[::-1], 0.2) != cut(members, 0.2, seed=1)


@pytest.mark.parametrize(("count", "taken"), [(0, 0), (1, 0), (2, 1), (3, 1), (5, 1), (13, 3)])
def test_a_cut_takes_one_at_least_and_never_all(count: int, taken: int) -> None:
    assert len(cut([str(number) for number in range(count)], 0.2)) == taken


def test_split_folders(tmp_path: Path) -> None:
    files = [*many("train/oak", "train/elm/near/wood"), *many("Valid/oak", "test/elm", count=3)]
    found = index(plant(tmp_path, *files, "unlabelled/1.jpg", "unlabelled/deep/oak/2.PNG"))
    assert found.counts == {"unlabelled": 2, "train": 20, "val": 3, "test": 3}
    assert found.classes == ("elm", "oak")
    assert set(found.labels_of("unlabelled")) == {-1}
    assert set(found.labels_of("val")) == {1}


def test_val_is_cut_from_train_and_test_is_left_alone(tmp_path: Path) -> None:
    found = index(plant(tmp_path, *many("train/oak", "train/elm", "test/oak"), "train/fir/only.jpg"))
    assert found.counts == {"unlabelled": 0, "train": 17, "val": 4, "test": 10}
    assert in_split(found, "test") == set(many("test/oak"))
    assert "train/fir/only.jpg" in in_split(found, "train")


def test_unlabelled_beside_class_folders(tmp_path: Path) -> None:
    found = index(plant(tmp_path, *many("oak", "elm"), *many("Unlabeled", count=7)))
    assert found.counts == {"unlabelled": 7, "train": 12, "val": 4, "test": 4}
    assert found.classes == ("elm", "oak")


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    endings = ("jpg", "JPEG", "png", "webp", "bmp", "Gif", "tif", "tiff", "ppm")
    files = [f"{number}.{ending}" for number, ending in enumerate(endings)]
    found = index(plant(tmp_path, *files, "notes.txt", "jpg", "provenance.csv", "a.jpg.part"))
    assert found.files == tuple(sorted(files))
    assert found.counts["unlabelled"] == 9
    assert found.classes == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["oak/1.jpg", "preview.png"], "1 images lie beside the folders of images, first 'preview.png'"),
        (["train/oak/1.jpg", "vla/oak/1.jpg"], "'vla' lies beside split folders.*did you mean 'val'"),
        (["images/oak/1.jpg", "images/elm/2.jpg"], "'images' is part of a release, not a class.*perhaps .*/images"),
        (["train/1.jpg", "test/oak/1.jpg"], "'train/1.jpg' lies in no class folder; expected train/CLASS"),
    ],
)
def test_an_unclear_layout_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        index(plant(tmp_path, *files))


def test_hidden_and_archivers_files_are_ignored(tmp_path: Path) -> None:
    hidden = ("oak/.1.jpg", ".git/2.jpg", "__MACOSX/oak/3.jpg", "oak/Thumbs.db", "LICENSE.txt")
    assert index(plant(tmp_path, "oak/1.jpg", *hidden)).files == ("oak/1.jpg",)


def test_unicode_and_blank_names(tmp_path: Path) -> None:
    composed, split_up = "\u00e9rable", "e\u0301rable"
    files = [f"{split_up}/a b.jpg", f"{split_up}/\u6a39 .jpg", "red  oak/#1,2.jpg", os.fsdecode(b"red  oak/\xff.jpg")]
    folder = plant(tmp_path, *files)
    data = read_folder(folder, tmp_path / "cache")
    assert data.index.classes == ("red  oak", composed)
    assert set(data.index.files) == set(files)
    assert all((folder / file).is_file() for file in data.index.files)


# ---- trees that must neither hang nor crash


def test_link_loops_end_and_linked_folders_count_once(tmp_path: Path) -> None:
    folder = plant(tmp_path, *many("oak", "elm", count=5))
    (folder / "elm" / "up").symlink_to(folder, target_is_directory=True)
    (folder / "elm" / "self").symlink_to(folder / "elm", target_is_directory=True)
    (folder / "again").symlink_to(folder / "oak", target_is_directory=True)
    (folder / "oak" / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    (folder / "oak" / "round.jpg").symlink_to(folder / "oak" / "round.jpg")
    found = index(folder)
    assert found.classes == ("elm", "oak")
    assert len(found) == 12  # the dangling links stay: the pack names and skips them
    elsewhere = plant(tmp_path / "outside", "1.jpg", "2.jpg")
    (folder / "fir").symlink_to(elsewhere, target_is_directory=True)
    assert index(folder).classes == ("elm", "fir", "oak")


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    folder = plant(tmp_path, *many("oak", count=3))
    os.mkfifo(folder / "oak" / "pipe.jpg")
    assert len(index(folder)) == 3


def test_an_unreadable_folder_is_reported_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = plant(tmp_path, *many("oak", "elm", count=3))
    scandir = os.scandir

    def refuse(place: str) -> object:
        if str(place).endswith("elm"):
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(trees.os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert index(folder).classes == ("oak",)
    assert "elm is left out: Permission denied" in caplog.text


# ---- splits.csv

GOOD = "file,class,split\noak/00.jpg,oak,train\nelm/00.jpg,elm,test\n"


def test_splits_csv_decides(tmp_path: Path) -> None:
    folder = plant(tmp_path, *many("oak", "elm", count=4), "heap/x.jpg")
    (folder / "splits.csv").write_text(
        'note,Split,file,CLASS\r\n"a, b",Train,oak/00.jpg,oak\r\n,validation,oak/01.jpg,oak\r\n\r\n'
        ",valid,elm/01.jpg, elm \r\n,TEST,elm/00.jpg,elm\r\n,extra,heap/x.jpg,\r\n,unlabeled,elm/02.jpg,elm\r\n"
    )
    found = index(folder)
    assert found.counts == {"unlabelled": 2, "train": 1, "val": 2, "test": 1}
    assert found.classes == ("elm", "oak")
    assert found.labels[found.files.index("elm/02.jpg")] == -1


def test_splits_csv_names_classes_of_any_folder(tmp_path: Path) -> None:
    folder = plant(tmp_path, "images/00.jpg", "images/01.jpg", "left/out.jpg")
    (folder / "splits.csv").write_text("file,class,split\nimages/00.jpg,oak,train\nimages/01.jpg,elm,test\n")
    assert index(folder).classes == ("elm", "oak")


def test_splits_csv_may_spell_unicode_otherwise_and_begin_with_a_mark(tmp_path: Path) -> None:
    folder = plant(tmp_path, "e\u0301rable/00.jpg", "elm/00.jpg")
    text = "file,class,split\n\u00e9rable/00.jpg,\u00e9rable,train\nelm/00.jpg,elm,test\n"
    (folder / "splits.csv").write_text(text, encoding="utf-8-sig")
    found = index(folder)
    assert found.classes == ("elm", "\u00e9rable")
    assert found.files[1] == "e\u0301rable/00.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; its first line must be file,class,split"),
        ("file,class,split\n", "lists no image"),
        ("file,klass,split\n", "line 1: column 'class' is missing; did you mean 'klass'"),
        ("file;class;split\n", "line 1: column 'file' is missing; fields are separated by commas"),
        ("file,class,split,file\n", "line 1: column 'file' is there 2 times"),
        (GOOD + "oak/01.jpg,oak,trian\n", "line 4: split 'trian' is unknown; did you mean 'train'"),
        (GOOD + "oak/01.jpg,oak,\n", "line 4: split '' is unknown"),
        (GOOD + "oak/1.jpg,oak,train\n", "line 4: file 'oak/1.jpg' is not there; did you mean 'oak/01.jpg'"),
        (GOOD + "oak/a.txt,oak,train\n", "line 4: file 'oak/a.txt' is not an image of a known format"),
        (GOOD + "oak/01.jpg,,val\n", "line 4: field 'class' is blank for a val image; did you mean 'oak'"),
        (GOOD + "oak/01.jpg,elm,val\n", "line 4: class 'elm' contradicts the folder; did you mean 'oak'"),
        (GOOD + "oak/01.jpg,oka,val\n", "line 4: class 'oka' contradicts the folder; did you mean 'oak'"),
        (GOOD + "oak/00.jpg,oak,train\n", "line 4: file 'oak/00.jpg' is listed twice, first in line 2"),
        (GOOD + ",oak,train\n", "line 4: field 'file' is blank"),
        (GOOD + "../data/oak/01.jpg,oak,train\n", "line 4: file '../data/oak/01.jpg' leaves the folder"),
        (GOOD + "/etc/oak.jpg,oak,train\n", "line 4: file '/etc/oak.jpg' leaves the folder"),
        (GOOD + "C:\\oak.jpg,oak,train\n", "line 4: file .* leaves the folder"),
        (GOOD + "oak/01.jpg,oak\n", "line 4: 2 fields where the header has 3"),
        (GOOD + 'oak/01.jpg,"oak,train\n', "line 4: not valid CSV"),
    ],
)
def test_a_fault_names_file_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    folder = plant(tmp_path, *many("oak", "elm", count=3), "oak/a.txt")
    (folder / "splits.csv").write_text(text)
    with pytest.raises(BadInput, match=message) as caught:
        index(folder)
    assert str(caught.value).startswith(f"{folder / 'splits.csv'}: ")


def test_missing_files_are_counted_and_the_first_named(tmp_path: Path) -> None:
    folder = plant(tmp_path, *many("oak", "elm", count=3))
    gone = "".join(f"oak/gone{number}.jpg,oak,train\n" for number in range(5))
    (folder / "splits.csv").write_text(GOOD + gone)
    with pytest.raises(BadInput, match=r"5 files are not there: 'oak/gone0.jpg' \(line 4\), .*gone2") as caught:
        index(folder)
    assert "gone3" not in str(caught.value)


@pytest.mark.parametrize(("encoding", "message"), [("latin-1", "line 3: not UTF-8 text"), ("utf-16", "it is UTF-16")])
def test_another_encoding_is_refused(tmp_path: Path, encoding: str, message: str) -> None:
    folder = plant(tmp_path, *many("oak", count=3))
    (folder / "splits.csv").write_bytes("file,class,split\noak/00.jpg,oak,train\n\xe9,oak,train\n".encode(encoding))
    with pytest.raises(BadInput, match=message):
        index(folder)


# ---- fingerprints


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path, cache: Path) -> None:
    folder = plant(tmp_path, *many("oak", "elm"))
    first = read_folder(folder, cache).fingerprint
    shutil.copytree(folder, tmp_path / "else" / "where")
    assert read_folder(tmp_path / "else" / "where", cache).fingerprint == first
    assert read_folder(folder, tmp_path / "another cache").fingerprint == first


def test_the_fingerprint_follows_bytes_names_classes_and_splits(tmp_path: Path, cache: Path) -> None:
    folder = plant(tmp_path, *many("oak", "elm"))
    seen = [read_folder(folder, cache).fingerprint]
    data = bytearray((folder / "oak" / "00.jpg").read_bytes())
    data[3] ^= 1
    (folder / "oak" / "00.jpg").write_bytes(data)
    seen.append(read_folder(folder, cache).fingerprint)
    (folder / "oak" / "00.jpg").rename(folder / "oak" / "zz.jpg")
    seen.append(read_folder(folder, cache).fingerprint)
    for split in ("test", "val"):
        (folder / "splits.csv").write_text(GOOD.replace("oak/00", "oak/01").replace("test", split))
        seen.append(read_folder(folder, cache).fingerprint)
    assert len(set(seen)) == 5


def test_digests_are_remembered_and_a_damaged_memory_is_not_believed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench.data import digests

    folder = plant(tmp_path, *many("oak", "elm"))
    for file in folder.rglob("*.jpg"):
        os.utime(file, (1e9, 1e9))
    first = read_folder(folder, cache).fingerprint
    (memory,) = (cache / "digests").iterdir()
    for damage in (b"", b"[]", b'{"oak/00.jpg": [1, "x"]}', b"\xff"):
        memory.write_bytes(damage)
        assert read_folder(folder, cache).fingerprint == first
    monkeypatch.setattr(digests, "_sha256", lambda path: pytest.fail(f"{path} was read again"))
    assert read_folder(folder, cache).fingerprint == first


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    folder = plant(tmp_path, *many("oak"))
    with caplog.at_level(logging.WARNING):
        assert len(read_folder(folder, tmp_path / "file").index) == 10
    assert "digests are not remembered" in caplog.text


# ---- usability


@pytest.mark.parametrize(
    ("files", "need", "message"),
    [
        (["a.txt"], "pretraining", "no usable image"),
        (many("test/oak", "val/oak"), "pretraining", "no unlabelled and no train image"),
        (["1.jpg"], "evaluation", "no train and no val and no test image"),
        (many("train/oak", "train/elm"), "evaluation", "no test image"),
        (many("oak"), "evaluation", "one class only"),
    ],
)
def test_unusable_data_is_one_clear_error(tmp_path: Path, files: list[str], need: str, message: str) -> None:
    dataset = resolve(str(plant(tmp_path, *files)))
    with pytest.raises(BadData, match=f"'data' cannot be used for {need}: it has .*{message}|{message}"):
        check_usable(dataset, need)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "labelled", "test", "classes"),
    [("coffee_leaf_bracol", 1433, 252, 5), ("plant_seedlings", 1080, 300, 12), ("grocery_store", 972, 567, 81)],
)
def test_real_folders(name: str, labelled: int, test: int, classes: int) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{name} is not beside the repository")
    dataset = resolve(str(SHARED / name))
    counts = dataset.counts
    assert (counts["train"] + counts["val"], counts["test"], len(dataset.index.classes)) == (labelled, test, classes)
    assert 0.15 < counts["val"] / labelled < 0.25
    check_usable(dataset, "evaluation")
    check_usable(dataset, "pretraining")


# ---- decoding


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray(ramp.astype(np.uint8))


RED, WHITE = [255, 0, 0], [255, 255, 255]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (2, 2), 1), WHITE),
        (Image.new("L", (2, 2), 7), [7, 7, 7]),
        (Image.new("LA", (2, 2), (7, 255)), [7, 7, 7]),
        (Image.new("LA", (2, 2), (7, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (2, 2), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 51)), [204, 204, 204]),
        (Image.new("RGB", (2, 2), "red").convert("P"), RED),
        (Image.fromarray(np.full((2, 2), 51 * 257, np.uint16)), [51, 51, 51]),
        (Image.fromarray(np.full((2, 2), 51 * 257, np.int32)), [51, 51, 51]),
        (Image.fromarray(np.full((2, 2), 0.2, np.float32)), [51, 51, 51]),
        (Image.fromarray(np.full((2, 2), np.nan, np.float32)), [0, 0, 0]),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), RED),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: list[int]) -> None:
    pixels = decode(encoded(image, "PNG" if image.mode not in ("CMYK", "F", "I") else "TIFF"))
    assert (pixels.shape, pixels.dtype) == ((2, 2, 3), np.uint8)
    assert pixels[0, 0].tolist() == expected


def test_transparent_palette_and_colour_key_are_laid_on_white() -> None:
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 1), 1)
    for data in (encoded(palette, transparency=0), encoded(palette, "GIF", transparency=0)):
        assert decode(data)[0, 0].tolist() == WHITE
        assert decode(data)[1, 1].tolist() == [0, 0, 255]
    assert decode(encoded(Image.new("RGB", (2, 2), "red"), transparency=(255, 0, 0)))[0, 0].tolist() == WHITE


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert decode(data)[0, 0].tolist() == RED


@pytest.mark.parametrize("turn", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(turn: int, kind: str) -> None:
    upright = np.full((16, 32, 3), 128, np.uint8)
    upright[:8, :8] = 255  # a white corner, top left
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }.get(turn, upright)
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif)
    pixels = decode(data)
    assert pixels.shape == (16, 32, 3)
    assert pixels[2:6, 2:6].mean() > 245
    assert pixels[2:6, -6:-2].mean() < 140 > pixels[-6:-2, 2:6].mean()
    if kind != "PNG":
        assert true_size(io.BytesIO(data)) == (32, 16)


def test_a_broken_exif_block_does_no_harm() -> None:
    data = encoded(gradient(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert decode(data).shape == (24, 40, 3)


def test_a_large_jpeg_is_decoded_small_but_not_below_twice_the_wanted_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for options, size in (({}, (1600, 1200)), ({"exif": exif}, (1200, 1600))):
        image, true = load(
            encoded(gradient(1600, 1200), "JPEG", **options), wanted=size[:1] and (size[0] // 8, size[1] // 8)
        )
        assert true == size
        assert image.size == (size[0] // 4, size[1] // 4)
    assert load(encoded(gradient(1600, 1200), "JPEG"), wanted=(800, 601))[0].size == (1600, 1200)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    chunks = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, body)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not an image of a known format"),
        (b"\xff\xd8\xff", "not an image|broken|truncated"),
        (encoded(gradient(), "JPEG")[:400], "truncated"),
        (encoded(gradient())[:-60], "truncated|broken"),
        (encoded(gradient(), "GIF")[:-300], "truncated|broken"),
        (encoded(gradient(), "BMP")[:200], "truncated"),
        (png_header(16000, 10000), "16000x10000 is more than 150,000,000 pixels"),
        (png_header(60000, 60000), "more than 150,000,000 pixels"),
        (png_header(0, 5), "no pixel|not an image|broken"),
        (encoded(gradient(), "PDF"), "not an image of a known format"),
    ],
)
def test_an_undecodable_file_says_why(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(data)


@pytest.mark.parametrize("size", [(1, 1), (5000, 3), (3, 5000)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    assert decode(encoded(gradient(*size))).shape == (size[1], size[0], 3)


def test_pillows_warnings_do_not_leak_and_filters_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    before, level = list(warnings.filters), logging.getLogger("PIL").level
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)  # 960 pixels: a warning, which here is an error
    assert decode(encoded(gradient())).shape == (24, 40, 3)
    with quiet(), quiet():
        assert logging.getLogger("PIL").level > logging.CRITICAL
    assert warnings.filters == before
    assert logging.getLogger("PIL").level == level


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_mutated_files_neither_hang_nor_crash(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 10_000_000)  # a mutated header may claim any size
    chance = random.Random(kind)
    good = encoded(gradient(), kind)
    decoded, reasons = 0, set()
    begin = time.monotonic()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        try:
            assert decode(bytes(data)).ndim == 3
            decoded += 1
        except Unreadable as error:
            reasons.add(str(error))
    assert decoded
    assert reasons
    assert not any("\n" in reason for reason in reasons)
    assert time.monotonic() - begin < 20
