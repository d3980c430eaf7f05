"""Checking a dataset: every fault that was planted is named, once, and nothing else is."""

import csv
import hashlib
import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from bench.data import check as checking
from bench.data.check import Finding, Findings, check
from bench.data.near import nearest, perceptual_hash
from bench.errors import BadData, BadInput, UnknownName

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BENCH_DATA", raising=False)
    monkeypatch.delenv("BENCH_CARDS", raising=False)


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth coloured picture, unlike any other seed's."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def draw(folder: Path, *files: str, first: int = 0) -> Path:
    for seed, file in enumerate(files, start=first):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(folder / file)
    return folder


def plain_folder(folder: Path) -> Path:
    """Two classes in official splits, without a fault."""
    names = [f"{split}/{label}/{number}.png" for split in ("train", "val", "test") for label in "ab" for number in "01"]
    return draw(folder, *names)


def small_cub(root: Path, per_class: int = 4) -> Path:
    """The release's layout: 1-based ids, the first of each class in test."""
    folder = root / "CUB_200_2011"
    files = [f"{label}/{label}_{number}.jpg" for label in ("001.Crow", "002.Wren") for number in range(per_class)]
    draw(folder / "images", *files)
    tables: dict[str, list[str]] = {
        "images": [],
        "image_class_labels": [],
        "train_test_split": [],
        "bounding_boxes": [],
    }
    for number, file in enumerate(files, start=1):
        tables["images"].append(f"{number} {file}")
        tables["image_class_labels"].append(f"{number} {1 if file.startswith('001') else 2}")
        tables["train_test_split"].append(f"{number} {0 if file.endswith('_0.jpg') else 1}")
        tables["bounding_boxes"].append(f"{number} 4.0 4.0 20.0 20.0")
    tables["classes"] = ["1 001.Crow", "2 002.Wren"]
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def run(reference: str | Path, distance: int | None = None, root: Path | None = None) -> Findings:
    return check(str(reference), str(root) if root else None, lambda *_: None, distance=distance)


def pairs(findings: Findings, kind: str) -> set[tuple[str, str, str]]:
    return {(one.file, one.other, one.split) for one in findings.of(kind)}


def copy(folder: Path, source: str, target: str) -> None:
    shutil.copyfile(folder / source, folder / target)


# ---- folders


def test_a_sound_folder_has_no_finding(tmp_path: Path) -> None:
    findings = run(plain_folder(tmp_path / "data"), distance=4)
    assert findings.found == ()
    assert [(tally.split, tally.listed, tally.usable) for tally in findings.tallies] == [
        ("train", 4, 4),
        ("val", 4, 4),
        ("test", 4, 4),
    ]
    assert findings.classes == 2


def test_every_unreadable_image_is_named_with_its_reason(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    (folder / "train/a/0.png").write_bytes(b"")
    (folder / "val/b/1.png").write_bytes(b"<html>not found</html>")
    whole = (folder / "test/a/1.png").read_bytes()
    (folder / "test/a/1.png").write_bytes(whole[: len(whole) // 2])
    findings = run(folder)
    assert {one.file: one.detail for one in findings.of("unreadable")} == {
        "train/a/0.png": "empty file",
        "val/b/1.png": "not an image of a known format",
        "test/a/1.png": "truncated file",
    }
    assert findings.faults == 3
    assert [(tally.listed, tally.usable) for tally in findings.tallies] == [(4, 3), (4, 3), (4, 3)]


def test_a_jpeg_cut_in_its_last_bytes_is_found_because_it_is_decoded_whole(tmp_path: Path) -> None:
    folder = draw(tmp_path / "data", *(f"train/{label}/{number}.jpg" for label in "ab" for number in range(3)))
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), dtype=np.uint8)).save(buffer, "JPEG")
    (folder / "train/a/0.jpg").write_bytes(buffer.getvalue()[: -len(buffer.getvalue()) // 20])
    assert [one.file for one in run(folder).of("unreadable")] == ["train/a/0.jpg"]


def test_copies_within_a_split_name_each_further_one_with_the_first(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    copy(folder, "train/a/0.png", "train/a/8.png")
    copy(folder, "train/a/0.png", "train/a/9.png")
    findings = run(folder)
    assert pairs(findings, "duplicate") == {
        ("train/a/8.png", "train/a/0.png", "train"),
        ("train/a/9.png", "train/a/0.png", "train"),
    }
    assert findings.faults == 2


def test_leaks_are_told_apart_by_their_splits(tmp_path: Path) -> None:
    folder = draw(plain_folder(tmp_path / "data"), *(f"unlabelled/{number}.png" for number in "012"), first=50)
    copy(folder, "train/a/0.png", "test/a/7.png")
    copy(folder, "val/b/0.png", "test/b/8.png")
    copy(folder, "unlabelled/1.png", "test/b/9.png")
    copy(folder, "train/b/1.png", "val/b/6.png")
    findings = run(folder)
    assert pairs(findings, "shared") == {
        ("test/a/7.png", "train/a/0.png", "train/test"),
        ("test/b/8.png", "val/b/0.png", "val/test"),
        ("test/b/9.png", "unlabelled/1.png", "unlabelled/test"),
        ("val/b/6.png", "train/b/1.png", "train/val"),
    }
    assert findings.of("duplicate") == findings.of("labels") == []


def test_one_image_under_two_classes_is_named(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    copy(folder, "train/a/0.png", "train/b/5.png")
    findings = run(folder)
    assert findings.of("labels") == [Finding("labels", "train/b/5.png", "train/a/0.png", "train", "'b' and 'a'")]
    assert len(findings.of("duplicate")) == 1


def test_a_broken_file_that_is_there_twice_is_no_duplicate(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    for name in ("train/a/0.png", "test/a/0.png"):
        (folder / name).write_bytes(b"")
    findings = run(folder)
    assert {one.kind for one in findings.found} == {"unreadable"}


def test_splits_csv_names_every_missing_and_every_unlisted_image(tmp_path: Path) -> None:
    folder = draw(tmp_path / "data", *(f"{label}/{number}.png" for label in "ab" for number in range(6)))
    lines = ["file,class,split", *(f"{label}/{n}.png,{label},train" for label in "ab" for n in range(4))]
    lines += [f"a/{number}.png,a,test" for number in range(10, 16)]
    (folder / "splits.csv").write_text("\n".join(lines) + "\n")
    findings = run(folder)
    assert [one.file for one in findings.of("missing")] == [f"a/{number}.png" for number in range(10, 16)]
    assert [one.file for one in findings.of("unlisted")] == ["a/4.png", "a/5.png", "b/4.png", "b/5.png"]
    assert {one.split for one in findings.of("missing")} == {"test"}


def test_a_faulty_splits_csv_is_still_one_error(tmp_path: Path) -> None:
    folder = draw(tmp_path / "data", "a/0.png", "b/0.png")
    (folder / "splits.csv").write_text("file,class,split\na/0.png,a,trian\n")
    with pytest.raises(BadInput, match=r"splits\.csv: line 2: split 'trian' is unknown; did you mean 'train'"):
        run(folder)


def test_a_link_to_nothing_is_missing(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    (folder / "train/a/7.png").symlink_to(tmp_path / "nowhere.png")
    assert [one.file for one in run(folder).of("missing")] == ["train/a/7.png"]


def test_odd_images_are_told_and_are_no_faults(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    picture(90, (20, 24)).save(folder / "train/a/7.png")
    picture(91, (400, 40)).save(folder / "train/a/8.png")
    picture(92).convert("L").save(folder / "train/a/9.png")
    findings = run(folder)
    assert {one.kind: one.file for one in findings.found} == {
        "tiny": "train/a/7.png",
        "long": "train/a/8.png",
        "gray": "train/a/9.png",
    }
    assert findings.faults == 0


def test_a_class_that_is_tested_and_never_shown_is_named(tmp_path: Path) -> None:
    folder = draw(plain_folder(tmp_path / "data"), "test/c/0.png", first=70)
    assert [one.detail for one in run(folder).of("classes")] == ["'c': no train image"]


def test_the_data_is_not_touched_and_two_checks_are_equal(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    copy(folder, "train/a/0.png", "test/b/9.png")

    def state() -> list[tuple[str, int, str]]:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return [(str(f), f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]

    before, first = state(), run(folder, distance=4)
    assert first == run(folder, distance=4)
    assert state() == before


def test_what_is_no_dataset_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="has no image"):
        run(tmp_path / "empty")
    with pytest.raises(UnknownName, match="did you mean 'cub200'"):
        run("cub20")
    with pytest.raises(BadInput, match="0 to 63 bits"):
        run("leaves", distance=64)


# ---- releases


def test_a_release_is_compared_with_its_card(tmp_path: Path) -> None:
    small_cub(tmp_path)
    findings = run("cub200", root=tmp_path)
    assert [(one.split, one.detail) for one in findings.of("counts")] == [
        ("train", "5,994 in the card, 6 listed"),
        ("test", "5,794 in the card, 2 listed"),
    ]
    assert [one.detail for one in findings.of("classes")] == ["200 in the card, 2 listed"]
    assert findings.faults == 3
    assert [(tally.split, tally.card, tally.listed) for tally in findings.tallies] == [
        ("train + val", 5994, 6),
        ("test", 5794, 2),
    ]


@pytest.mark.parametrize("reference", ["folder", "card"])
def test_a_release_with_every_kind_of_fault(tmp_path: Path, reference: str) -> None:
    folder = small_cub(tmp_path)
    images = folder / "images"
    copy(images, "001.Crow/001.Crow_1.jpg", "001.Crow/001.Crow_0.jpg")  # train or val into test
    (images / "002.Wren/002.Wren_2.jpg").unlink()
    (images / "002.Wren/002.Wren_3.jpg").write_bytes(b"\xff\xd8 broken")
    draw(images, "001.Crow/extra.jpg", first=80)
    draw(folder, "segmentations/001.Crow/mask.png", first=81)  # another part of the release, not a lost image
    findings = run(folder if reference == "folder" else "cub200?boxes=true", root=tmp_path)
    shared = pairs(findings, "shared")
    assert {(one, other) for one, other, _ in shared} <= {
        ("images/001.Crow/001.Crow_0.jpg", "images/001.Crow/001.Crow_1.jpg")
    }
    assert {split for _, _, split in shared} <= {"train/test", "val/test"}
    assert len(shared) == 1
    assert [one.file for one in findings.of("missing")] == ["images/002.Wren/002.Wren_2.jpg"]
    assert [one.file for one in findings.of("unreadable")] == ["images/002.Wren/002.Wren_3.jpg"]
    assert [one.file for one in findings.of("unlisted")] == ["images/001.Crow/extra.jpg"]


def test_a_release_that_is_not_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'cub200' is not here \(looked in .*bench data fetch cub200"):
        run("cub200", root=tmp_path)


def test_a_card_of_a_folder_may_say_other_classes_and_counts(tmp_path: Path) -> None:
    plain_folder(tmp_path / "data")
    card = tmp_path / "mine.toml"
    card.write_text(
        'title = "t"\nsummary = "s"\nreader = "folder"\nlocation = "data"\nclasses = ["a", "c"]\n'
        'counts = { train = 4, val = 4, test = 5 }\nlicence = "l"\ncitation = "c"\nversion = "1"\n'
    )
    findings = run(card)
    assert [one.detail for one in findings.of("counts")] == ["5 in the card, 4 listed"]
    assert [one.detail for one in findings.of("classes")] == [
        "'b': has images, not in the card",
        "'c': in the card, without an image",
    ]


def test_a_built_in_family_is_sound() -> None:
    findings = run("wings")
    assert findings.faults == 0
    assert {tally.split: tally.usable for tally in findings.tallies} == {
        "train": 300,
        "val": 200,
        "test": 400,
        "unlabelled": 1500,
    }


# ---- near duplicates


def _jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [_jpeg, lambda image: image.resize((72, 60)), lambda image: ImageEnhance.Brightness(image).enhance(0.9)],
    ids=["saved again", "resized", "darker"],
)
def test_a_changed_copy_in_test_is_near(tmp_path: Path, change: Callable[[Image.Image], Image.Image]) -> None:
    folder = plain_folder(tmp_path / "data")
    change(Image.open(folder / "train/a/1.png")).save(folder / "test/a/9.png")
    assert run(folder).found == ()
    assert pairs(run(folder, distance=6), "near") == {("test/a/9.png", "train/a/1.png", "train/test")}


def test_equal_bytes_are_shared_and_not_near_as_well(tmp_path: Path) -> None:
    folder = plain_folder(tmp_path / "data")
    copy(folder, "train/a/1.png", "test/a/9.png")
    findings = run(folder, distance=4)
    assert len(findings.of("shared")) == 1
    assert findings.of("near") == []


def test_nearest_agrees_with_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.data import near as module

    monkeypatch.setattr(module, "_ROWS", 7)
    monkeypatch.setattr(module, "_COLUMNS", 19)
    dice = np.random.default_rng(0)
    centres = dice.integers(0, 2**64, 12, dtype=np.uint64)
    flips = [np.uint64(sum(1 << int(bit) for bit in dice.choice(64, dice.integers(0, 8), False))) for _ in range(140)]
    codes = np.array([centres[number % 12] ^ flip for number, flip in enumerate(flips)], dtype=np.uint64)
    keys = dice.integers(0, 90, 140)
    first, second, own, other = codes[:80], codes[80:], keys[:80], keys[80:]
    found = nearest(first, second, 6, (own, other))
    expected = []
    for column, code in enumerate(second):
        close = [
            (int(first[row] ^ code).bit_count(), row)
            for row in range(80)
            if own[row] != other[column] and int(first[row] ^ code).bit_count() <= 6
        ]
        if close:
            expected.append((column, min(close)[1], min(close)[0], len(close)))
    assert len(expected) > 20
    assert list(zip(found.columns, found.rows, found.distances, found.counts, strict=True)) == expected


def test_nearest_of_nothing_is_nothing() -> None:
    none, some = np.empty(0, np.uint64), np.zeros(3, np.uint64)
    keys = np.empty(0, np.int64), np.arange(3)
    assert len(nearest(none, some, 4, keys).columns) == 0
    assert len(nearest(some, none, 4, keys[::-1]).columns) == 0


def test_near_duplicates_of_many_images_take_seconds() -> None:
    """A thirtieth of the comparisons of 100,000 images; in processor time, because other work may be under way."""
    codes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    keys = np.arange(20_000)
    began = time.process_time()
    nearest(codes[:15_000], codes[15_000:], 4, (keys[:15_000], keys[15_000:]))
    assert time.process_time() - began < 3


def test_the_hash_is_imagehashs_own() -> None:
    import imagehash

    image = picture(3)
    assert perceptual_hash(image) == int(str(imagehash.phash(image)), 16)


# ---- real folders


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared real folders are not on this machine")
def test_real_folders_are_sound() -> None:
    findings = run(SHARED / "plant_seedlings")
    assert findings.faults == 0
    assert sum(tally.usable for tally in findings.tallies) == 1380
    assert findings.classes == 12


def test_kinds_are_complete() -> None:
    from bench.checksheet import _WORDS

    assert tuple(_WORDS) == checking.FAULTS + checking.ODD


def test_csv_and_json_hold_every_row(tmp_path: Path) -> None:
    import json

    from bench.checksheet import export

    folder = plain_folder(tmp_path / "data")
    copy(folder, "train/a/0.png", 'test/b/9,"quoted".png')
    findings = run(folder)
    export(findings, tmp_path / "out.csv")
    export(findings, tmp_path / "out.json")
    with (tmp_path / "out.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == json.loads((tmp_path / "out.json").read_text())
    assert [row["kind"] for row in rows] == ["shared", "labels"]
    assert rows[0]["file"] == 'test/b/9,"quoted".png'
