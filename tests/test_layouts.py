"""Releases as they lie on a disk: CUB-200, Stanford Dogs and the three layouts of cassava, in miniature."""

import io
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from functools import cache as cache_results
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image

from bench.cache import cache_folder
from bench.data.dataset import Dataset, resolve
from bench.data.index import SPLITS, cut
from bench.data.layout import Layout
from bench.data.pack import Pack, open_pack
from bench.data.reading import read_content
from bench.data.releases import find_layout, layout_names
from bench.data.source import Split
from bench.data.tree import LocalTree, open_tree
from bench.errors import BadData, BadInput, UnknownName

SHARED = Path(__file__).parents[2] / "shared" / "data"
REAL = ("coffee_leaf_bracol", "grocery_store", "plant_seedlings")
CASSAVA = ("cbb", "cbsd", "cgm", "cmd", "healthy")
RED, BLUE = (220, 20, 20), (20, 20, 220)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@cache_results
def two_colours() -> bytes:
    """A 32x16 JPEG, its left half red and its right half blue."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(two_colours() + path.name.encode())  # no two files are equal


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def splits_of(dataset: Dataset, split: Split) -> set[str]:
    return {file for file, one in zip(dataset.index.files, dataset.index.splits, strict=True) if one == split}


def pack_of(dataset: Dataset) -> Pack:
    return open_pack(dataset.source, 16, cache_folder(), processes=2)


def labels_by_file(dataset: Dataset) -> dict[str, str]:
    index = dataset.index
    return {file: index.classes[label] for file, label in zip(index.files, index.labels, strict=True) if label >= 0}


def fail(reference: str, root: Path) -> str:
    with pytest.raises(BadInput) as caught:
        resolve(reference, str(root))
    return str(caught.value)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


# ---- CUB-200-2011

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")


def cub(folder: Path, each: int = 6) -> Path:
    """Two species of `each` images; of every six the first four are for training, and every box is the right half."""
    files = [f"{bird}/{bird[4:]}_{number:04d}_{number}.jpg" for bird in BIRDS for number in range(each)]
    for file in files:
        picture(folder / "images" / file)
    numbered = list(enumerate(files, start=1))
    write(folder / "images.txt", *(f"{key} {file}" for key, file in numbered))
    write(folder / "image_class_labels.txt", *(f"{key} {int(file[:3])}" for key, file in numbered))
    write(folder / "train_test_split.txt", *(f"{key} {int((key - 1) % 6 < 4)}" for key, _ in numbered))
    write(folder / "classes.txt", *(f"{int(bird[:3])} {bird}" for bird in BIRDS))
    write(folder / "bounding_boxes.txt", *(f"{key} 18.0 0.0 14.0 16.0" for key, _ in numbered))
    return folder


@pytest.mark.parametrize("place", ["cub200", "cub200/CUB_200_2011", "CUB_200_2011", "."])
def test_cub_is_found_below_the_data_root(tmp_path: Path, place: str) -> None:
    cub(tmp_path / "root" / place)
    dataset = resolve("cub200", str(tmp_path / "root"))
    assert (dataset.name, dataset.source.reader, dataset.index.classes) == ("cub200", "cub200", BIRDS)
    assert dataset.source.location == os.path.normpath(tmp_path / "root" / place)


def test_cub_splits_and_classes(tmp_path: Path) -> None:
    dataset = resolve(str(cub(tmp_path / "anything")))
    assert (dataset.name, dataset.counts) == ("cub200", {"unlabelled": 0, "train": 6, "val": 2, "test": 4})
    assert all(file.startswith(f"images/{label}/") for file, label in labels_by_file(dataset).items())
    ends = {f"_{number:04d}_{number}.jpg" for number in (4, 5)}
    assert {file[-11:] for file in splits_of(dataset, "test")} == {end[-11:] for end in ends}
    pack = pack_of(dataset)
    assert (len(pack), pack.skipped, pack.counts) == (12, (), dataset.counts)


def test_a_releases_folder_takes_options_and_is_told_to_be_a_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = cub(tmp_path / "cub200")
    found, named = resolve(f"{folder}?boxes=true"), resolve("cub200?boxes=true", str(tmp_path))
    assert found.source == named.source
    assert [record.message.partition(": train")[0] for record in caplog.records] == [
        "cub200?boxes=true: not the whole release",
        "cub200: not the whole release",
    ]
    with pytest.raises(UnknownName, match="level"):
        resolve(f"{folder}?level=genus")
    with pytest.raises(BadInput, match="is no release's folder"):
        resolve(f"{folder / 'images'}?boxes=true")


def test_cub_boxes_crop_only_when_asked(tmp_path: Path) -> None:
    cub(tmp_path / "cub200")
    whole = pack_of(resolve("cub200", str(tmp_path)))
    cropped = pack_of(resolve("cub200?boxes=true", str(tmp_path)))
    check_crop(whole, cropped, 14 / 16)
    (tmp_path / "cub200" / "bounding_boxes.txt").unlink()
    assert resolve("cub200", str(tmp_path)).source.fingerprint == whole.source.fingerprint
    assert "bounding_boxes.txt" in fail("cub200?boxes=true", tmp_path)


def check_crop(whole: Pack, cropped: Pack, aspect: float) -> None:
    """Of a picture that is red on the left the whole has red, its right half none."""
    assert whole.source.fingerprint != cropped.source.fingerprint
    assert len(whole) == len(cropped) > 0
    assert set(whole.aspect.tolist()) == {2.0}
    assert cropped.aspect.tolist() == pytest.approx([aspect] * len(cropped))
    assert int(whole.images[:, 0].max()) > 180 > 80 > int(cropped.images[:, 0].max())
    assert int(cropped.images[:, 2].min()) > 180


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("images.txt", "\n3 ", "\n2 ", "images.txt: line 3: id '2' is there twice, first in line 2"),
        ("images.txt", "\n3 ", "\nx3 ", "image_class_labels.txt: line 3: image id '3' is unknown"),
        ("images.txt", "3 001.Black_footed_Albatross/", "3", "images.txt: line 3"),
        ("images.txt", "001.Black_footed_Albatross/", "../../", "leaves the folder"),
        ("images.txt", "001.Black_footed_Albatross/", "\0", "leaves the folder"),
        ("images.txt", "Black_footed_Albatross_0001_1.jpg", "./Black_footed_Albatross_0000_0.jpg", "listed twice"),
        ("images.txt", "Black_footed_Albatross_0001_1.jpg", "Black_footed_Albatross_0000_0.jpg", "listed twice"),
        ("image_class_labels.txt", "1 1\n", "", "images.txt: line 1: image id '1' is not in image_class_labels.txt"),
        ("image_class_labels.txt", "1 1\n", "1 0\n", "image_class_labels.txt: line 1: class id '0' is unknown"),
        ("image_class_labels.txt", "1 1\n", "1 2\n", "line 1: class '002.Laysan_Albatross' contradicts the folder"),
        ("image_class_labels.txt", "1 1\n", "1\n", "image_class_labels.txt: line 1: 1 fields where 2 are needed"),
        ("train_test_split.txt", "2 1\n", "2 yes\n", "train_test_split.txt: line 2: 'yes' is neither 1"),
        ("train_test_split.txt", "2 1\n", "", "images.txt: line 2: image id '2' is not in train_test_split.txt"),
        ("classes.txt", "2 002", "1 002", "classes.txt: line 2: id '1' is there twice"),
        ("classes.txt", "002.Laysan", "001.Black_footed", "classes.txt: line 2: class '001.Black_footed_Albatross' is"),
        ("bounding_boxes.txt", "1 18.0", "1 wide", "bounding_boxes.txt: line 1: 'wide' is no number of pixels"),
        ("bounding_boxes.txt", "1 18.0", "1 nan", "bounding_boxes.txt: line 1: 'nan' is no number of pixels"),
        ("bounding_boxes.txt", "14.0 16.0", "0 16.0", "bounding_boxes.txt: line 1: a box of 0 x 16 px holds nothing"),
        ("bounding_boxes.txt", "2 18.0 0.0 14.0 16.0\n", "", "image id '2' is not in bounding_boxes.txt"),
        ("bounding_boxes.txt", "14.0 16.0", "14.0", "bounding_boxes.txt: line 1: 4 fields where 5 are needed"),
    ],
)
def test_a_broken_table_of_cub(tmp_path: Path, table: str, old: str, new: str, message: str) -> None:
    replace(cub(tmp_path / "cub200") / table, old, new)
    found = fail("cub200?boxes=true", tmp_path)
    assert message in found
    assert str(tmp_path / "cub200") in found


@pytest.mark.parametrize("table", ["images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_a_missing_table_of_cub(tmp_path: Path, table: str) -> None:
    (cub(tmp_path / "cub200") / table).unlink()
    assert f"{table}: this table of the release is missing" in fail("cub200", tmp_path)


def test_a_list_of_images_is_no_release_of_birds(tmp_path: Path) -> None:
    picture(tmp_path / "odd" / "oak" / "1.jpg")
    write(tmp_path / "odd" / "images.txt", "1 oak/1.jpg")
    write(tmp_path / "odd" / "classes.txt", "1 oak")
    assert resolve(str(tmp_path / "odd")).source.reader == "folder"


# ---- Stanford Dogs

CHIHUAHUA, TOY, WOLF = "n02085620-Chihuahua", "n02087046-toy_terrier", "n02114367-wolf"
TRAIN = [*(f"{CHIHUAHUA}/n02085620_{number}.jpg" for number in range(10)), f"{TOY}/n02087046_1.jpg"]
TRAIN += [f"{TOY}/n02087046_{number}.jpg" for number in range(2, 6)]
TEST = [f"{CHIHUAHUA}/n02085620_77.jpg", f"{TOY}/n02087046_77.jpg"]
VOC = """<annotation><folder>02085620</folder><size><width>32</width><height>16</height><depth>3</depth></size>{}
</annotation>"""
OBJECT = (
    "<object><name>dog</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def cells(values: list[str]) -> Any:
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column


def write_list(path: Path, files: list[str], labels: list[float], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [file.removesuffix(".jpg") for file in files]
    table = {
        "file_list": cells(files),
        "annotation_list": cells(names),
        "labels": np.array(labels, dtype=np.float64).reshape(-1, 1),
    }
    scipy.io.savemat(path, table | more, do_compression=True)


def number_of(file: str) -> int:
    return 1 if file.startswith(CHIHUAHUA) else 2


def dogs(folder: Path, *, lists: str = ".", images: str = "Images", boxes: str = "Annotation") -> Path:
    """Two breeds; each image's annotation has two dogs, one in either half of the right half."""
    for file in TRAIN + TEST:
        picture(folder / images / file)
        objects = OBJECT.format(18, 0, 22, 16) + OBJECT.format(20, 4, 32, 16)
        write(folder / boxes / file.removesuffix(".jpg"), VOC.format(objects))
    for name, files in (("train_list.mat", TRAIN), ("test_list.mat", TEST)):
        write_list(folder / lists / name, files, [number_of(file) for file in files])
    return folder


@pytest.mark.parametrize("place", ["dogs", "dogs/StanfordDogs", "stanford_dogs", "ImageNetDogs", "."])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"lists": "lists", "images": "images", "boxes": "annotation"},
        {"images": "images/Images", "boxes": "annotations/Annotation"},
    ],
)
def test_dogs_are_found_below_the_data_root(tmp_path: Path, place: str, parts: dict[str, str]) -> None:
    dogs(tmp_path / "root" / place, **parts)
    dataset = resolve("dogs?boxes=true", str(tmp_path / "root"))
    assert dataset.index.classes == ("Chihuahua", "toy_terrier")
    assert dataset.counts == {"unlabelled": 0, "train": 12, "val": 3, "test": 2}
    assert set(dataset.index.boxes) == {(18.0, 0.0, 32.0, 16.0)}
    assert not pack_of(dataset).skipped


def test_dogs_splits_and_classes(tmp_path: Path) -> None:
    dataset = resolve(str(dogs(tmp_path / "anything")))
    assert (dataset.name, dataset.source.metric) == ("dogs", "top1")
    assert splits_of(dataset, "test") == {f"Images/{file}" for file in TEST}
    assert labels_by_file(dataset) == {
        f"Images/{file}": ["Chihuahua", "toy_terrier"][number_of(file) - 1] for file in TRAIN + TEST
    }


def test_dogs_boxes_crop_only_when_asked(tmp_path: Path) -> None:
    dogs(tmp_path / "dogs")
    whole, cropped = (pack_of(resolve(name, str(tmp_path))) for name in ("dogs", "dogs?boxes=true"))
    check_crop(whole, cropped, 14 / 16)
    (tmp_path / "dogs" / "Annotation").rename(tmp_path / "dogs" / "elsewhere")
    assert resolve("dogs", str(tmp_path)).source.fingerprint == whole.source.fingerprint
    assert "unpack annotation.tar" in fail("dogs?boxes=true", tmp_path)


def test_a_dog_without_an_annotation_stays_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (dogs(tmp_path / "dogs") / "Annotation" / TRAIN[0].removesuffix(".jpg")).unlink()
    index = resolve("dogs?boxes=true", str(tmp_path)).index
    assert index.boxes[index.files.index(f"Images/{TRAIN[0]}")] is None
    assert index.boxes.count(None) == 1
    assert "1 images have no annotation and stay whole" in caplog.text


def test_breeds_of_one_name_keep_their_ids(tmp_path: Path) -> None:
    other = "n99999999-Chihuahua"
    files = [f"{CHIHUAHUA}/a.jpg", f"{other}/b.jpg", f"{TOY}/c.jpg"]
    for file in files:
        picture(tmp_path / "dogs" / "Images" / file)
    write_list(tmp_path / "dogs" / "train_list.mat", files, [1, 2, 3])
    write_list(tmp_path / "dogs" / "test_list.mat", [f"{TOY}/d.jpg"], [3])  # MATLAB squeezes a list of one
    assert resolve("dogs", str(tmp_path)).index.classes == (CHIHUAHUA, other, "toy_terrier")


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (TRAIN, [0, *[number_of(file) for file in TRAIN[1:]]], "row 1: label 0.0 is no whole number from 1 on"),
        (TRAIN, [1.5, *[number_of(file) for file in TRAIN[1:]]], "row 1: label 1.5 is no whole number from 1 on"),
        (TRAIN, [np.nan, *[number_of(file) for file in TRAIN[1:]]], "row 1: label nan is no whole number"),
        (TRAIN, [1, 2, *[number_of(file) for file in TRAIN[2:]]], f"row 2: label 2 contradicts folder {CHIHUAHUA!r}"),
        ([*TRAIN, f"{WOLF}/a.jpg"], [*map(number_of, TRAIN), 1], f"row 16: label 1 contradicts folder {WOLF!r}"),
        (["../../a-b/c.jpg"], [1], "row 1: '../../a-b/c.jpg' is not WORDNET_ID-BREED/IMAGE.jpg"),
        (["/etc-x/c.jpg"], [1], "row 1: '/etc-x/c.jpg' is not"),
        ([f"{TOY}/../x.jpg"], [1], "is not WORDNET_ID-BREED/IMAGE.jpg"),
        (["plain.jpg"], [1], "is not WORDNET_ID-BREED/IMAGE.jpg"),
        (TRAIN, [1.0], "file_list and labels must be two lists of one length (found: (15,) and (1,))"),
        ([TRAIN[0], TRAIN[0]], [1, 1], "listed twice"),
        ([*TRAIN, TEST[0]], [*map(number_of, TRAIN), 1], "listed twice, in train and in test"),
    ],
)
def test_a_broken_list_of_dogs(tmp_path: Path, files: list[str], labels: list[float], message: str) -> None:
    write_list(dogs(tmp_path / "dogs") / "train_list.mat", files, labels)
    found = fail("dogs", tmp_path)
    assert message in found
    assert str(tmp_path / "dogs") in found


def test_a_list_of_dogs_that_is_no_list(tmp_path: Path) -> None:
    table = dogs(tmp_path / "dogs") / "test_list.mat"
    scipy.io.savemat(table, {"labels": np.ones((2, 1))})
    assert "test_list.mat: variable 'file_list' is missing" in fail("dogs", tmp_path)
    scipy.io.savemat(table, {"labels": np.ones((2, 1)), "file_list": np.ones((2, 1))})
    assert "test_list.mat: row 1: '1.0' is not WORDNET_ID-BREED/IMAGE.jpg" in fail("dogs", tmp_path)
    scipy.io.savemat(table, {"labels": cells(["1", "2"]), "file_list": cells(TEST)})
    assert "test_list.mat: file_list and labels must be" in fail("dogs", tmp_path)
    table.write_bytes(table.read_bytes()[:-20])
    assert "test_list.mat: not a readable MATLAB file" in fail("dogs", tmp_path)
    table.unlink()
    assert "test_list.mat: this table of the release is missing" in fail("dogs", tmp_path)


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax>{}</bndbox>"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid XML"),
        ("<annotation>", "not valid XML"),
        ("<annotation/>", "field 'bndbox' is missing"),
        (VOC.format(BOX.format(9, "")), "field 'ymax' of a box is missing"),
        (VOC.format(BOX.format("wide", "<ymax>9</ymax>")), "'wide' is no number of pixels"),
        (VOC.format(BOX.format("inf", "<ymax>9</ymax>")), "'inf' is no number of pixels"),
        (VOC.format(BOX.format(0, "<ymax>9</ymax>")), "a box from 1, 2 to 0, 9 px holds nothing"),
        ('<!DOCTYPE a [<!ENTITY b "9">]>' + VOC.format(BOX.format("&b;", "<ymax>9</ymax>")), "declares a document"),
        ('<?xml version="1.0" encoding="klingon"?><a/>', "not valid XML"),
        (" " * 70_000, "more than 64 KiB"),
    ],
)
def test_a_broken_annotation_of_a_dog(tmp_path: Path, text: str, message: str) -> None:
    name = TRAIN[3].removesuffix(".jpg")
    (dogs(tmp_path / "dogs") / "Annotation" / name).write_text(text)
    found = fail("dogs?boxes=true", tmp_path)
    assert message in found
    assert found.startswith(str(tmp_path / "dogs" / "Annotation" / name))
    assert resolve("dogs", str(tmp_path)).counts["test"] == 2  # it is not read where no boxes are asked for


# ---- cassava


def named(count: int, kind: str = "train") -> list[tuple[str, str]]:
    return [(label, f"{kind}-{label}-{number}.jpg") for label in CASSAVA for number in range(count)]


def zipped(folder: Path) -> Path:
    """The zip that TFDS reads: 5 + 2 + 3 images of each class."""
    for split, count in (("train", 5), ("validation", 2), ("test", 3)):
        for label, name in named(count, split):
            picture(folder / split / label / name)
    return folder


def kaggle_2019(folder: Path, *, nested: bool = False, spelt: Callable[[str], str] = str) -> Path:
    def part(name: str) -> Path:
        return folder / name / name if nested else folder / name

    for label, name in named(10):
        picture(part("train") / spelt(label) / name)
    for number in range(4):
        picture(part("test") / "0" / f"test-img-{number}.jpg")
    extra(part("extraimages"))
    return folder


def extra(folder: Path, count: int = 7) -> None:
    for number in range(count):
        picture(folder / f"extra-image-{number}.jpg")


def kaggle_2020(folder: Path, *, map_too: bool = True) -> Path:
    lines = []
    for number, (label, _) in enumerate(named(10)):
        picture(folder / "train_images" / f"{number:06d}.jpg")
        lines.append(f"{number:06d}.jpg,{CASSAVA.index(label)}")
    picture(folder / "test_images" / "2216849948.jpg")
    write(folder / "train.csv", "image_id,label", *lines)
    diseases = ["Bacterial Blight (CBB)", "Brown Streak Disease (CBSD)", "Green Mottle (CGM)", "Mosaic Disease (CMD)"]
    said = {str(key): f"Cassava {disease}" for key, disease in enumerate(diseases)} | {"4": "Healthy"}
    if map_too:
        write(folder / "label_num_to_disease_map.json", json.dumps(said))
    return folder


LAYOUTS = {"zip": zipped, "2019": kaggle_2019, "2020": kaggle_2020}
PLACES = ["cassava", "cassava/cassavaleafdata", "cassavaleafdata", "cassava-disease"]
PLACES += ["cassava-leaf-disease-classification", "."]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cassava_is_found_below_the_data_root(tmp_path: Path, place: str, layout: str) -> None:
    LAYOUTS[layout](tmp_path / "root" / place)
    dataset = resolve("cassava", str(tmp_path / "root"))
    assert (dataset.name, dataset.source.reader, dataset.index.classes) == ("cassava", "cassava", CASSAVA)
    assert not pack_of(dataset).skipped


def test_cassava_as_zip_keeps_its_splits(tmp_path: Path) -> None:
    dataset = resolve(str(zipped(tmp_path / "x")))
    assert dataset.counts == {"unlabelled": 0, "train": 25, "val": 10, "test": 15}
    for file, label in labels_by_file(dataset).items():
        assert file.split("/")[1] == label
    folders: dict[Split, str] = {"train": "train", "val": "validation", "test": "test"}
    for split, folder in folders.items():
        assert {file.split("/")[0] for file in splits_of(dataset, split)} == {folder}


@pytest.mark.parametrize("beside", ["extraimages", "cassavaleafdata/extraimages", "extraimages/extraimages"])
def test_extraimages_beside_the_zip_are_its_unlabelled_part(tmp_path: Path, beside: str) -> None:
    zipped(tmp_path / "cassava" / "cassavaleafdata")
    extra(tmp_path / "cassava" / beside)
    dataset = resolve("cassava", str(tmp_path))
    assert dataset.counts == {"unlabelled": 7, "train": 25, "val": 10, "test": 15}
    pack = pack_of(dataset)
    assert [pack.files[row] for row in pack.pretraining_rows().tolist()] == sorted(splits_of(dataset, "unlabelled"))


def test_cassava_of_2019(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dataset = resolve(str(kaggle_2019(tmp_path / "x")))
    assert dataset.counts == {"unlabelled": 7, "train": 30, "val": 10, "test": 10}
    assert not any(file.startswith("test/") for file in dataset.index.files)
    assert (
        "4 images of test/0 are left out: they have no labels, and are the labelled validation and test" in caplog.text
    )
    each: dict[Split, int] = {"train": 6, "val": 2, "test": 2}
    for split, count in each.items():
        assert Counter(dataset.labels_of(split)) == dict.fromkeys(range(5), count)


def names_of(dataset: Dataset, split: Split) -> set[str]:
    return {file.rpartition("/")[2] for file in splits_of(dataset, split)}


@pytest.mark.parametrize("spelt", [str, str.upper, str.capitalize])
@pytest.mark.parametrize("nested", [False, True])
def test_the_splits_do_not_depend_on_how_a_zip_was_unpacked(
    tmp_path: Path, nested: bool, spelt: Callable[[str], str]
) -> None:
    plain = resolve(str(kaggle_2019(tmp_path / "plain")))
    other = resolve(str(kaggle_2019(tmp_path / "other", nested=nested, spelt=spelt)))
    for split in ("train", "val", "test"):
        assert names_of(other, split) == names_of(plain, split)
    assert (other.counts, other.index.classes) == (plain.counts, CASSAVA)


def test_test_is_the_hash_cut_and_val_comes_from_the_rest(tmp_path: Path) -> None:
    dataset = resolve(str(kaggle_2019(tmp_path / "x")))
    for label in CASSAVA:
        members = [f"{label}/{name}" for one, name in named(10) if one == label]
        test = cut(members, 0.2)
        assert {f"{label}/{name}" for name in names_of(dataset, "test") if f"-{label}-" in name} == test
        rest = [name for name in members if name not in test]
        assert {f"{label}/{name}" for name in names_of(dataset, "val") if f"-{label}-" in name} == cut(rest, 0.2)


@pytest.mark.parametrize("map_too", [True, False])
def test_cassava_of_2020(tmp_path: Path, map_too: bool, caplog: pytest.LogCaptureFixture) -> None:
    dataset = resolve(str(kaggle_2020(tmp_path / "x", map_too=map_too)))
    assert dataset.counts == {"unlabelled": 0, "train": 30, "val": 10, "test": 10}
    for file, label in labels_by_file(dataset).items():
        assert CASSAVA[int(Path(file).stem) // 10] == label
    assert "1 images are in no split of the release" in caplog.text
    extra(tmp_path / "x" / "extraimages")
    assert resolve(str(tmp_path / "x")).counts["unlabelled"] == 7


def test_a_map_of_2020_that_counts_otherwise_is_followed(tmp_path: Path) -> None:
    folder = kaggle_2020(tmp_path / "x")
    said = {str(4 - number): f"Disease ({name.upper()})" for number, name in enumerate(CASSAVA)}
    write(folder / "label_num_to_disease_map.json", json.dumps(said))
    for file, label in labels_by_file(resolve(str(folder))).items():
        assert CASSAVA[4 - int(Path(file).stem) // 10] == label


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("train.csv", "000001.jpg,0", "000001.jpg,5", "train.csv: line 3: label '5' is unknown"),
        ("train.csv", "000001.jpg,0", "000001.jpg,", "train.csv: line 3: label '' is unknown"),
        ("train.csv", "000001.jpg,0", "000000.jpg,0", "train.csv: line 3: image_id '000000.jpg' is there twice"),
        ("train.csv", "000001.jpg,0", "../../x.jpg,0", "train.csv: line 3: image_id '../../x.jpg' is no file name"),
        ("train.csv", "000001.jpg,0", ",0", "train.csv: line 3: image_id '' is no file name"),
        ("train.csv", "000001.jpg,0", "000001.jpg", "train.csv: line 3: 1 fields where the header has 2"),
        ("train.csv", "000001.jpg,0", '"000001.jpg,0', "train.csv: line 51: not valid CSV"),
        ("train.csv", "image_id,label", "image,label", "train.csv: line 1: column 'image_id' is there 0 times"),
        ("train.csv", "image_id,label", "label,label", "train.csv: line 1: column 'image_id' is there 0 times"),
        ("label_num_to_disease_map.json", '"4": ', '"5": ', "map.json: line 1: labels 0, 1, 2, 3, 4 are needed"),
        (
            "label_num_to_disease_map.json",
            "(CBB)",
            "(CGM)",
            "label 2: 'Cassava Green Mottle (CGM)' is none",
        ),
        ("label_num_to_disease_map.json", "{", "[", "map.json: line 1: not valid JSON"),
        ("label_num_to_disease_map.json", "{", "9" * 5000 + "{", "map.json: line 1: not valid JSON"),
    ],
)
def test_a_broken_table_of_cassava(tmp_path: Path, table: str, old: str, new: str, message: str) -> None:
    replace(kaggle_2020(tmp_path / "cassava") / table, old, new)
    found = fail("cassava", tmp_path)
    assert message in found
    assert str(tmp_path / "cassava") in found


def test_two_layouts_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    kaggle_2020(kaggle_2019(tmp_path / "cassava"))
    assert "two releases lie here" in fail("cassava", tmp_path)


def test_a_zip_that_was_unpacked_twice_is_not_cut_twice(tmp_path: Path) -> None:
    kaggle_2019(kaggle_2019(tmp_path / "cassava"), nested=True)
    found = fail("cassava", tmp_path)
    assert "lies here twice, also as 'train/cbb/train-cbb-0.jpg'" in found


def test_an_unknown_class_of_cassava(tmp_path: Path) -> None:
    picture(kaggle_2019(tmp_path / "cassava") / "train" / "cmb" / "1.jpg")
    assert "train/cmb/1.jpg: folder 'cmb' is no class of cassava; did you mean 'cmd'?" in fail("cassava", tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        ["train/oak/1.jpg", "train/elm/1.jpg", "test/oak/2.jpg", "test/elm/2.jpg"],
        ["train/healthy/1.jpg", "train/cmd/1.jpg", "test/healthy/1.jpg", "test/cmd/2.jpg"],
    ],
)
def test_an_odd_folder_with_a_train_folder_is_no_cassava(tmp_path: Path, files: list[str]) -> None:
    for file in files:
        picture(tmp_path / "odd" / file)
    assert resolve(str(tmp_path / "odd")).source.reader == "folder"


def test_the_table_of_another_competition_is_no_cassava(tmp_path: Path) -> None:
    picture(tmp_path / "odd" / "train_images" / "1.jpg")
    write(tmp_path / "odd" / "train.csv", "image,labels", "1.jpg,healthy")
    assert resolve(str(tmp_path / "odd")).source.reader == "folder"


# ---- all of them

RELEASES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "cub200": ("cub200", cub),
    "dogs": ("dogs", dogs),
    **{f"cassava {name}": ("cassava", make) for name, make in LAYOUTS.items()},
}


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    name, make = RELEASES[request.param]
    return name, make(tmp_path / name)


def test_missing_and_broken_images_are_counted(release: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = release
    whole = resolve(name, str(tmp_path))
    test = sorted(splits_of(whole, "test"))
    train = sorted(splits_of(whole, "train"))
    (folder / test[0]).write_bytes((folder / test[0]).read_bytes()[:100])
    (folder / train[0]).write_bytes(b"")
    dataset = resolve(name, str(tmp_path))
    assert dataset.counts == whole.counts
    pack = pack_of(dataset)
    assert {entry.file for entry in pack.skipped} == {test[0], train[0]}
    assert len(pack) + 2 == len(dataset.index)


@pytest.mark.parametrize("name", ["cub200", "dogs", "cassava 2020"])
def test_listed_images_that_are_not_there_are_counted(tmp_path: Path, name: str) -> None:
    reference, make = RELEASES[name]
    folder = make(tmp_path / reference)
    whole = resolve(reference, str(tmp_path))
    (folder / whole.index.files[0]).unlink()
    dataset = resolve(reference, str(tmp_path))
    assert (dataset.counts, dataset.index.splits) == (whole.counts, whole.index.splits)
    assert [(entry.file, entry.reason) for entry in pack_of(dataset).skipped] == [
        (whole.index.files[0], "cannot be read: No such file or directory")
    ]
    for file in whole.index.files[1:]:
        (folder / file).unlink()
    with pytest.raises(BadData, match="has no usable image"):
        pack_of(resolve(reference, str(tmp_path)))


def test_splits_do_not_overlap_and_do_not_depend_on_the_reading_order(
    release: tuple[str, Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = release
    dataset = resolve(name, str(tmp_path))
    assert len(set(dataset.index.files)) == len(dataset.index)
    assert all(dataset.counts[split] for split in SPLITS[1:])
    scan = LocalTree.scan

    def shuffled(tree: LocalTree) -> dict[str, tuple[int, int]]:
        items = list(scan(tree).items())
        random.Random(1).shuffle(items)
        return dict(items)

    monkeypatch.setattr(LocalTree, "scan", shuffled)
    again = read_content(open_tree(dataset.source.location), cache, name)
    assert again.index.files == dataset.index.files
    assert again.index.splits == dataset.index.splits
    assert again.fingerprint == dataset.source.fingerprint


def test_a_release_is_recognised_as_itself_only(release: tuple[str, Path]) -> None:
    name, folder = release
    assert [one for one in layout_names() if find_layout(one).is_at(open_tree(str(folder)))] == [name]
    assert resolve(str(folder)).name == name


def test_a_release_that_is_moved_stays_the_same(release: tuple[str, Path], tmp_path: Path) -> None:
    name, folder = release
    before = resolve(str(folder)).source
    folder.rename(tmp_path / "moved")
    after = resolve(str(tmp_path / "moved")).source
    assert (after.fingerprint, after.name) == (before.fingerprint, name)


def test_boxes_of_a_release_that_has_none(tmp_path: Path) -> None:
    zipped(tmp_path / "cassava")
    assert "no bounding boxes to crop to" in fail("cassava?boxes=true", tmp_path)


def test_a_layout_raises_for_a_table_without_images(tmp_path: Path) -> None:
    empty = Layout(version=1, marks=("x",), read=lambda _: [])
    with pytest.raises(BadData, match="its tables list no image"):
        empty.rows(open_tree(str(tmp_path)), {}, "")


# ---- real images


def real(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"real data is not beside this repository: {SHARED / name}")
    return SHARED / name


@pytest.mark.parametrize("name", REAL)
def test_real_folders_are_no_release(name: str) -> None:
    tree = open_tree(str(real(name)))
    assert not [one for one in layout_names() if find_layout(one).is_at(tree)]


def test_real_images_in_the_layout_of_birds(tmp_path: Path) -> None:
    """Links to a real set's images, with the same splits told by CUB's tables."""
    source = resolve(str(real("coffee_leaf_bracol"))).index
    chosen = range(0, len(source), 25)
    numbered = [(key, row, source.classes[source.labels[row]]) for key, row in enumerate(chosen, start=1)]
    folder = tmp_path / "cub200"
    for key, row, label in numbered:
        link = folder / "images" / label / f"{key}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(SHARED / "coffee_leaf_bracol" / source.files[row])
    write(folder / "images.txt", *(f"{key} {label}/{key}.jpg" for key, _, label in numbered))
    write(folder / "image_class_labels.txt", *(f"{key} {source.labels[row] + 1}" for key, row, _ in numbered))
    write(folder / "train_test_split.txt", *(f"{key} {int(source.splits[row] != 'test')}" for key, row, _ in numbered))
    write(folder / "classes.txt", *(f"{number} {name}" for number, name in enumerate(source.classes, start=1)))
    dataset = resolve("cub200", str(tmp_path))
    assert dataset.index.classes == source.classes
    assert dataset.counts["test"] == sum(source.splits[row] == "test" for row in chosen)
    pack = pack_of(dataset)
    assert (len(pack), pack.skipped) == (len(chosen), ())


def test_real_images_in_the_layout_of_cassava(tmp_path: Path) -> None:
    source = resolve(str(real("coffee_leaf_bracol"))).index
    rows: dict[str, list[int]] = {label: [] for label in CASSAVA}
    for row, label in enumerate(source.labels.tolist()):
        rows[CASSAVA[label]].append(row)
    for label, members in rows.items():
        (tmp_path / "cassava" / "train" / label).mkdir(parents=True)
        for row in members[:10]:
            (tmp_path / "cassava" / "train" / label / f"{row}.jpg").symlink_to(
                SHARED / "coffee_leaf_bracol" / source.files[row]
            )
    dataset = resolve("cassava", str(tmp_path))
    assert dataset.counts == {"unlabelled": 0, "train": 30, "val": 10, "test": 10}
    assert not pack_of(dataset).skipped
