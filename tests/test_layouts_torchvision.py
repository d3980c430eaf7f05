"""Releases that torchvision lists too: Aircraft, Flowers-102, Pets, Cars and Food-101, in miniature."""

import io
import json
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision.datasets
from PIL import Image

from bench.cache import cache_folder
from bench.data.card import read_card
from bench.data.dataset import Dataset, resolve
from bench.data.index import SPLITS, Box, Row
from bench.data.pack import open_pack
from bench.data.releases import find_layout, layout_names
from bench.data.tree import open_tree
from bench.errors import BadInput, BenchError, UnknownName

DATASETS = Path(__file__).parents[1] / "datasets"
RED, BLUE = (220, 20, 20), (20, 20, 220)
Make = Callable[[Path], None]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def two_colours() -> bytes:
    """A JPEG of 32 x 16 px, its left half red and its right half blue."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=95)
    return stream.getvalue()


JPEG = two_colours()


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG + name.encode())  # no two files are equal


def save_mat(path: Path, **variables: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, variables)


# The releases, each in its own folder's name.

PLANES = {  # image: split, variant, family, manufacturer
    "1025794": ("train", "707-320", "Boeing 707", "Boeing"),
    "1340192": ("train", "737-700", "Boeing 737", "Boeing"),
    "0056978": ("train", "F/A-18", "F/A-18", "McDonnell Douglas"),
    "0698580": ("val", "707-320", "Boeing 707", "Boeing"),
    "0450014": ("val", "Spitfire", "Spitfire", "Supermarine"),
    "1042824": ("test", "737-700", "Boeing 737", "Boeing"),
    "0894380": ("test", "737-800", "Boeing 737", "Boeing"),
}
AIRCRAFT = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    pictures(data / "images", *(f"{image}.jpg" for image in PLANES))
    for column, (level, table) in enumerate(AIRCRAFT.items(), start=1):
        write(data / f"{table}.txt", *dict.fromkeys(plane[column] for plane in PLANES.values()))
        for split in ("train", "val", "test"):
            listed = [f"{image} {plane[column]}" for image, plane in PLANES.items() if plane[0] == split]
            write(data / f"images_{level}_{split}.txt", *listed)
    write(data / "images_box.txt", *(f"{image} 17 1 32 16" for image in PLANES))


FLOWERS = [1, 1, 77, 102, 77, 1, 102, 5, 5, 77]  # the class of image 1, 2, ...
SETS = {"trnid": [1, 3, 4], "valid": [6, 5], "tstid": [2, 7, 8, 9, 10]}


def flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    pictures(folder / "jpg", *(f"image_{number:05d}.jpg" for number in range(1, 11)))
    save_mat(folder / "imagelabels.mat", labels=np.array([FLOWERS], dtype=np.uint8))
    save_mat(folder / "setid.mat", **{name: np.array([ids], dtype=np.uint16) for name, ids in SETS.items()})


PETS = {
    "trainval": ["Abyssinian_100 1 1 1", "american_bulldog_2 2 2 1", "Bengal_7 3 1 2", "american_bulldog_10 2 2 1"],
    "test": ["Abyssinian_201 1 1 1", "american_bulldog_3 2 2 1", "Bengal_9 3 1 2"],
}
HEAD = """<annotation><folder>OXIIIT</folder><size><width>32</width><height>16</height></size><object><name>cat</name>
<bndbox><xmin>17</xmin><ymin>1</ymin><xmax>32</xmax><ymax>16</ymax></bndbox></object></annotation>"""


def pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for word, listed in PETS.items():
        write(folder / "annotations" / f"{word}.txt", *listed)
        pictures(folder / "images", *(f"{line.split()[0]}.jpg" for line in listed))
    for line in PETS["trainval"]:
        write(folder / "annotations" / "xmls" / f"{line.split()[0]}.xml", HEAD)
    pictures(folder / "annotations" / "trimaps", "Abyssinian_100.png")


MODELS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
CARS = {"train": [1, 2, 2, 3, 3], "test": [3, 1]}


CORNERS = {"bbox_x1": 17, "bbox_y1": 1, "bbox_x2": 32, "bbox_y2": 16}


def annotations(labels: list[int], *, without: str = "", **second: Any) -> Any:
    """A struct array as the release has it; `second` replaces fields of the second annotation, "label" its class."""
    fields = [field for field in (*CORNERS, "class", "fname") if field != without]
    found = np.zeros((1, len(labels)), dtype=[(field, object) for field in fields])
    for position, label in enumerate(labels):
        values: dict[str, Any] = {**CORNERS, "class": label, "fname": f"{position + 1:05d}.jpg"}
        if position == 1:
            values |= {"class" if field == "label" else field: value for field, value in second.items()}
        for field in fields:
            value = values[field]
            found[field][0, position] = np.uint8(value) if isinstance(value, int) and 0 <= value < 256 else value
    return found


def cars(root: Path) -> None:
    folder = root / "stanford_cars"
    for split, labels in CARS.items():
        pictures(folder / f"cars_{split}", *(f"{position + 1:05d}.jpg" for position in range(len(labels))))
    save_mat(folder / "devkit" / "cars_train_annos.mat", annotations=annotations(CARS["train"]))
    save_mat(folder / "cars_test_annos_withlabels.mat", annotations=annotations(CARS["test"]))
    save_mat(folder / "devkit" / "cars_meta.mat", class_names=np.array([MODELS], dtype=object))
    save_mat(folder / "devkit" / "cars_test_annos.mat", annotations=annotations(CARS["test"], without="class"))


FOOD = {
    "train": {"apple_pie": ["apple_pie/1005649", "apple_pie/1014775"], "waffles": ["waffles/1", "waffles/2"]},
    "test": {"apple_pie": ["apple_pie/1011328"], "waffles": ["waffles/9"]},
}


def food101(root: Path) -> None:
    folder = root / "food-101"
    for word, listed in FOOD.items():
        pictures(folder / "images", *(f"{file}.jpg" for files in listed.values() for file in files))
        write(folder / "meta" / f"{word}.json", json.dumps(listed))
        write(folder / "meta" / f"{word}.txt", *(file for files in listed.values() for file in files))


RELEASES: dict[str, Make] = {make.__name__: make for make in (aircraft, cars, flowers102, food101, pets)}


def folder_of(root: Path, name: str) -> Path:
    RELEASES[name](root)
    (folder,) = root.iterdir()
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


Rows = dict[str, tuple[str, str]]


def rows_of(dataset: Dataset) -> Rows:
    """Each file's class and split."""
    index = dataset.index
    names = [index.classes[label] for label in index.labels]
    return dict(zip(index.files, zip(names, index.splits, strict=True), strict=True))


def box_of(dataset: Dataset, file: str) -> Box | None:
    return dataset.index.boxes[dataset.index.files.index(file)]


# What is read: torchvision's own classes, given the same tree, are the oracle.


class AnyFlowers(torchvision.datasets.Flowers102):  # type: ignore[misc, unused-ignore]
    def _check_integrity(self) -> bool:
        return True


def torchvision_says(name: str, root: Path) -> Rows:
    """(class, split) of each file, where train holds what torchvision calls trainval or train."""
    words = {"pets": {"trainval": "train", "test": "test"}, "cars": {"train": "train", "test": "test"}}
    words |= {"food101": words["cars"]}
    found = {}
    for word, split in words.get(name, {"train": "train", "val": "val", "test": "test"}).items():
        listed: Any
        if name == "aircraft":
            listed = torchvision.datasets.FGVCAircraft(root, split=word)
            files, labels = listed._image_files, listed._labels
        elif name == "flowers102":
            listed = AnyFlowers(root, split=word)
            files, labels = listed._image_files, listed._labels
        elif name == "pets":
            listed = torchvision.datasets.OxfordIIITPet(root, split=word)
            files, labels = listed._images, listed._labels
        elif name == "cars":
            listed = torchvision.datasets.StanfordCars(root, split=word)
            files, labels = zip(*listed._samples, strict=True)
        else:
            listed = torchvision.datasets.Food101(root, split=word)
            files, labels = listed._image_files, listed._labels
        (folder,) = root.iterdir()
        for file, label in zip(files, labels, strict=True):
            found[Path(file).relative_to(folder).as_posix()] = listed.classes[label], split
    return found


def with_val_as_train(found: Rows, said: Rows) -> Rows:
    """`found`, in which val that was cut from train counts as train again where the release has no val."""
    if any(split == "val" for _, split in said.values()):
        return found
    return {file: (name, "train" if split == "val" else split) for file, (name, split) in found.items()}


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_listed_as_torchvision_lists_it(name: str, root: Path) -> None:
    RELEASES[name](root)
    said = torchvision_says(name, root)
    assert with_val_as_train(rows_of(resolve(name, str(root))), said) == said
    assert len(said) >= 6


@pytest.mark.parametrize("name", RELEASES)
def test_splits_and_classes_are_those_of_the_tables(name: str, root: Path) -> None:
    RELEASES[name](root)
    found = rows_of(resolve(name, str(root)))
    expected: Rows = {
        "aircraft": {f"data/images/{image}.jpg": (plane[1], plane[0]) for image, plane in PLANES.items()},
        "cars": {
            f"cars_{split}/{position:05d}.jpg": (MODELS[label - 1], split)
            for split, labels in CARS.items()
            for position, label in enumerate(labels, start=1)
        },
        "flowers102": {
            f"jpg/image_{image:05d}.jpg": (flower(FLOWERS[image - 1]), split)
            for split, images in zip(("train", "val", "test"), SETS.values(), strict=True)
            for image in images
        },
        "food101": {
            f"images/{file}.jpg": (label, split)
            for split, listed in FOOD.items()
            for label, files in listed.items()
            for file in files
        },
        "pets": {
            f"images/{line.split()[0]}.jpg": (BREEDS[int(line.split()[1])], "train" if word == "trainval" else "test")
            for word, listed in PETS.items()
            for line in listed
        },
    }[name]
    assert with_val_as_train(found, expected) == expected


BREEDS = {1: "Abyssinian", 2: "American Bulldog", 3: "Bengal"}


def flower(number: int) -> str:
    return {1: "pink primrose", 5: "english marigold", 77: "passion flower", 102: "blackberry lily"}[number]


@pytest.mark.parametrize("name", ["cars", "food101", "pets"])
def test_val_is_cut_from_train_where_the_release_has_none(name: str, root: Path) -> None:
    RELEASES[name](root)
    dataset = resolve(name, str(root))
    assert dataset.counts["val"] >= 1
    said = {file for file, (_, split) in torchvision_says(name, root).items() if split == "test"}
    assert {file for file, (_, split) in rows_of(dataset).items() if split == "test"} == said


@pytest.mark.parametrize("level", AIRCRAFT)
def test_aircraft_has_three_levels(level: str, root: Path) -> None:
    aircraft(root)
    dataset = resolve(f"aircraft?level={level}", str(root))
    column = 1 + list(AIRCRAFT).index(level)
    assert set(dataset.index.classes) == {plane[column] for plane in PLANES.values()}
    assert rows_of(dataset)["data/images/0894380.jpg"] == (PLANES["0894380"][column], "test")
    assert dataset.name == f"aircraft?level={level}"


def test_levels_are_other_data(root: Path) -> None:
    aircraft(root)
    found = {resolve(f"aircraft{level}", str(root)).source.fingerprint for level in ("", "?level=family")}
    assert len(found) == 2
    assert resolve("aircraft?level=variant", str(root)).source.fingerprint in found


def test_a_wrong_level_answers_with_the_nearest(root: Path) -> None:
    aircraft(root)
    with pytest.raises(UnknownName, match="did you mean 'manufacturer'"):
        resolve("aircraft?level=manufacturers", str(root))


def test_names_of_flowers_are_all_different() -> None:
    names = torchvision.datasets.Flowers102.classes
    assert len(set(names)) == len(names) == 102


# Where a release may lie.


@pytest.mark.parametrize("name", RELEASES)
def test_a_release_is_found_under_every_name_of_its_folder(name: str, root: Path) -> None:
    folder = folder_of(root, name)
    folders = read_card(DATASETS / f"{name}.toml").folders
    assert folder.name in folders
    first = resolve(name, str(folder))
    for number, place in enumerate([name, *folders, *(f"{name}/{other}" for other in folders)]):
        target = root / str(number) / place
        target.parent.mkdir(parents=True)
        folder = folder.rename(target)
        moved = resolve(name, str(root / str(number)))
        assert Path(moved.source.location) == folder
        assert moved.source.fingerprint == first.source.fingerprint


@pytest.mark.parametrize("name", RELEASES)
def test_a_releases_folder_is_a_reference_too(name: str, root: Path) -> None:
    folder = folder_of(root, name)
    dataset = resolve(str(folder))
    assert (dataset.name, dataset.source.reader) == (name, name)
    assert dataset.source.fingerprint == resolve(name, str(root)).source.fingerprint


@pytest.mark.parametrize("name", RELEASES)
def test_a_folder_is_one_release_only(name: str, root: Path) -> None:
    tree = open_tree(str(folder_of(root, name)))
    assert [other for other in layout_names() if find_layout(other).is_at(tree)] == [name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"),
        ("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels (1).mat"),
        ("devkit", "car_devkit/devkit"),
        ("cars_train", "cars_train/cars_train"),
        ("cars_test", "cars_test/cars_test"),
    ],
)
def test_cars_are_read_in_the_layouts_of_copies(old: str, new: str, root: Path) -> None:
    folder = folder_of(root, "cars")
    usual = resolve("cars", str(root))
    aside = (folder / old).rename(root / "aside")
    (folder / new).parent.mkdir(parents=True, exist_ok=True)
    aside.rename(folder / new)
    found = resolve("cars", str(root))
    assert found.counts == usual.counts
    assert all((folder / file).is_file() for file in found.index.files)
    assert {(Path(file).name, row[0]) for file, row in rows_of(found).items()} == {
        (Path(file).name, row[0]) for file, row in rows_of(usual).items()
    }


# Parts of a release, which people keep and tests make.


def test_one_flower_per_split_is_enough(root: Path) -> None:
    flowers102(root)
    folder = root / "flowers-102"
    save_mat(folder / "imagelabels.mat", labels=np.array([[3, 5, 3]]))
    save_mat(folder / "setid.mat", trnid=np.array([[1]]), valid=np.array([[2]]), tstid=np.array([[3]]))
    assert rows_of(resolve("flowers102", str(root))) == {
        "jpg/image_00001.jpg": ("canterbury bells", "train"),
        "jpg/image_00002.jpg": ("english marigold", "val"),
        "jpg/image_00003.jpg": ("canterbury bells", "test"),
    }


def test_a_split_of_flowers_may_be_empty(root: Path) -> None:
    flowers102(root)
    sets = {**SETS, "tstid": []}
    save_mat(root / "flowers-102" / "setid.mat", **{name: np.array([ids]) for name, ids in sets.items()})
    assert resolve("flowers102", str(root)).counts == {"unlabelled": 0, "train": 3, "val": 2, "test": 0}


def test_one_car_per_split_is_enough(root: Path) -> None:
    cars(root)
    folder = root / "stanford_cars"
    save_mat(folder / "devkit" / "cars_train_annos.mat", annotations=annotations([1]))
    save_mat(folder / "cars_test_annos_withlabels.mat", annotations=annotations([1]))
    save_mat(folder / "devkit" / "cars_meta.mat", class_names=np.array([MODELS[:1]], dtype=object))
    assert rows_of(resolve("cars", str(root))) == {
        "cars_train/00001.jpg": (MODELS[0], "train"),
        "cars_test/00001.jpg": (MODELS[0], "test"),
    }


def test_breeds_of_pets_may_be_a_part_and_another_one_in_each_split(root: Path) -> None:
    pets(root)
    annotations_folder = root / "oxford-iiit-pet" / "annotations"
    write(annotations_folder / "trainval.txt", "Bengal_7 6 1 2", "american_bulldog_2 2 2 1", "Bengal_8 6 1 2")
    write(annotations_folder / "test.txt", "shiba_inu_3 34 2 22")
    found = rows_of(resolve("pets", str(root)))
    assert {file: name for file, (name, _) in found.items()} == {
        "images/Bengal_7.jpg": "Bengal",
        "images/Bengal_8.jpg": "Bengal",
        "images/american_bulldog_2.jpg": "American Bulldog",
        "images/shiba_inu_3.jpg": "Shiba Inu",
    }
    assert found["images/shiba_inu_3.jpg"][1] == "test"


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("aircraft", "data/images_variant_val.txt"),
        ("aircraft", "data/variants.txt"),
        ("pets", "annotations/trainval.txt"),
    ],
)
def test_line_ends_blank_lines_and_byte_order_marks_change_nothing(name: str, table: str, root: Path) -> None:
    path = folder_of(root, name) / table
    before = rows_of(resolve(name, str(root)))
    text = path.read_text(encoding="utf-8")
    path.write_bytes(b"\xef\xbb\xbf" + f"{text}\n  \n".replace("\n", " \r\n").encode())
    assert rows_of(resolve(name, str(root))) == before


# Boxes.

BOXED = {
    "aircraft": "data/images/1025794.jpg",
    "cars": "cars_train/00001.jpg",
    "pets": "images/american_bulldog_10.jpg",
}


@pytest.mark.parametrize(("name", "file"), BOXED.items())
def test_boxes_count_from_zero_and_hold_both_corners(name: str, file: str, root: Path) -> None:
    RELEASES[name](root)
    dataset = resolve(f"{name}?boxes=true", str(root))
    assert box_of(dataset, file) == (16, 0, 32, 16)
    assert resolve(name, str(root)).index.boxes == ()


@pytest.mark.parametrize(("name", "file"), BOXED.items())
def test_boxes_crop_the_packed_image(name: str, file: str, root: Path) -> None:
    RELEASES[name](root)
    for reference, colour in ((name, RED), (f"{name}?boxes=true", BLUE)):
        pack = open_pack(resolve(reference, str(root)).source, 16, cache_folder(), processes=2)
        image = pack.images[pack.files.index(file)].numpy()
        assert np.abs(image[:, 8, 2].astype(int) - colour).max() < 30  # a pixel at the left


def test_pets_without_a_head_stay_whole_and_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    pets(root)
    (root / "oxford-iiit-pet" / "annotations" / "xmls" / "Bengal_7.xml").unlink()
    with caplog.at_level(logging.WARNING):
        dataset = resolve("pets?boxes=true", str(root))
    assert box_of(dataset, "images/Bengal_7.jpg") is None
    assert "1 train images have no box around a head and stay whole" in caplog.text
    assert "3 test images have no box around a head" in caplog.text


@pytest.mark.parametrize("name", sorted(set(RELEASES) - set(BOXED)))
def test_boxes_of_a_release_without_them_are_refused(name: str, root: Path) -> None:
    RELEASES[name](root)
    with pytest.raises(BadInput, match="no bounding boxes"):
        resolve(f"{name}?boxes=true", str(root))


def test_boxes_are_looked_at_only_when_asked_for(root: Path) -> None:
    aircraft(root)
    (root / "fgvc-aircraft-2013b" / "data" / "images_box.txt").write_text("damaged")
    resolve("aircraft", str(root))
    with pytest.raises(BadInput, match=r"images_box\.txt: line 1"):
        resolve("aircraft?boxes=true", str(root))


# Missing and broken images.


@pytest.mark.parametrize("name", RELEASES)
def test_missing_and_broken_images_are_counted_and_left_out(name: str, root: Path) -> None:
    folder = folder_of(root, name)
    files = resolve(name, str(root)).index.files
    (folder / files[0]).unlink()
    (folder / files[1]).write_bytes(JPEG[:200])
    pack = open_pack(resolve(name, str(root)).source, 16, cache_folder(), processes=2)
    assert {skip.file for skip in pack.skipped} == set(files[:2])
    assert set(pack.files) == set(files[2:])


# Broken tables: one error that names the file, the place in it, and what is wrong.


def edit(file: str, old: str, new: str) -> Make:
    def change(folder: Path) -> None:
        text = (folder / file).read_text(encoding="utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")

    return change


def overwrite(file: str, data: bytes | str) -> Make:
    def change(folder: Path) -> None:
        (folder / file).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def remove(file: str) -> Make:
    return lambda folder: (folder / file).unlink()


def mat(file: str, **variables: Any) -> Make:
    return lambda folder: save_mat(folder / file, **variables)


def train_annotations(**second: Any) -> Make:
    return mat("devkit/cars_train_annos.mat", annotations=annotations([1, 2, 2], **second))


def cells(*names: Any) -> Any:
    return np.array([names], dtype=object)


TRAIN, LIST, HEADS = "data/images_variant_train.txt", "annotations/test.txt", "annotations/xmls/Bengal_7.xml"
BROKEN: dict[str, list[tuple[Make, str]]] = {
    "aircraft": [
        (remove(TRAIN), r"images_variant_train\.txt: this table of the release is missing"),
        (remove("data/variants.txt"), r"variants\.txt: this table of the release is missing"),
        (edit(TRAIN, "1340192 737-700", "1340192"), r"images_variant_train\.txt: line 2: 1 fields where 2"),
        (edit(TRAIN, "737-700", "737-70"), r"train\.txt: line 2: class '737-70' is unknown; did you mean '737-700'"),
        (edit(TRAIN, "1340192", "../../x"), r"images_variant_train\.txt: line 2: '../../x' is no file's name"),
        (edit(TRAIN, "1340192", "1025794"), r"train\.txt: line 2: image '1025794' is there twice, first in line 1"),
        (
            edit("data/images_variant_test.txt", "1042824", "0698580"),
            r"test\.txt: line 1: image '0698580' is there " r"twice, first in line 1 of data/images_variant_val\.txt",
        ),
        (
            edit("data/variants.txt", "737-800", "737-700"),
            r"variants\.txt: line 5: class '737-700' is there twice, " r"first in line 2",
        ),
        (overwrite(TRAIN, b"1 a\n2 \xff\n"), r"images_variant_train\.txt: line 2: not UTF-8"),
    ],
    "aircraft?boxes=true": [
        (edit("data/images_box.txt", "17 1 32 16", "17 1 32"), r"images_box\.txt: line 1: 4 fields"),
        (edit("data/images_box.txt", "17 1 32 16", "17 1 x 16"), r"images_box\.txt: line 1: 'x'"),
        (edit("data/images_box.txt", "17 1 32 16", "nan 1 2 16"), r"images_box\.txt: line 1: 'nan'"),
        (edit("data/images_box.txt", "17 1 32 16", "33 1 32 16"), r"images_box\.txt: line 1: a box from"),
        (edit("data/images_box.txt", "1340192", "1025794"), r"images_box\.txt: line 2: image '1025794'"),
        (edit("data/images_box.txt", "1340192", "9"), r"images_box\.txt: .*'1340192' of data/images_var"),
        (remove("data/images_box.txt"), r"images_box\.txt: this table of the release is missing"),
    ],
    "pets": [
        (remove("annotations/trainval.txt"), r"trainval\.txt: this table of the release is missing"),
        (edit(LIST, "Abyssinian_201 1 1 1", "Abyssinian_201 1"), r"test\.txt: line 1: 2 fields where 4"),
        (edit(LIST, "Abyssinian_201 1", "Abyssinian_201 one"), r"test\.txt: line 1: 'one' is no whole number"),
        (edit(LIST, "Abyssinian_201", "Abyssinian"), r"test\.txt: line 1: image 'Abyssinian' is not BREED_NUMBER"),
        (
            edit(LIST, "Abyssinian_201", "../Abyssinian_201"),
            r"test\.txt: line 1: '../Abyssinian_201' is no file's name",
        ),
        (
            edit(LIST, "Abyssinian_201 1", "Abyssinian_201 9"),
            r"test\.txt: line 1: class id 9 contradicts 1 .* line 1 of ",
        ),
        (edit(LIST, "bulldog_3 2", "bull_3 2"), r"test\.txt: line 2: class id 2 is that of 'american_bulldog', not"),
        (edit(LIST, "Abyssinian_201", "Abyssinian_100"), r"images/Abyssinian_100\.jpg: listed twice"),
    ],
    "pets?boxes=true": [
        (overwrite(HEADS, "<annotation>"), r"Bengal_7\.xml: line 1: not valid XML"),
        (overwrite(HEADS, "<annotation/>"), r"Bengal_7\.xml: field 'bndbox' is missing"),
        (edit(HEADS, "<ymax>16</ymax>", ""), r"Bengal_7\.xml: field 'ymax' of a box is missing"),
        (edit(HEADS, "<ymax>16", "<ymax>six"), r"Bengal_7\.xml: field 'ymax': 'six' is no number"),
        (edit(HEADS, "<ymax>16", "<ymax>0"), r"Bengal_7\.xml: a box from 17, 1 to 32, 0 px holds nothing"),
        (overwrite(HEADS, "<a>" + " " * (64 << 10)), r"Bengal_7\.xml: more than 64 KiB"),
        (overwrite(HEADS, '<?xml version="1.0" encoding="none"?><a/>'), r"Bengal_7\.xml: .*not valid XML"),
    ],
    "cars": [
        (remove("cars_test_annos_withlabels.mat"), r"withlabels\.mat: .* missing; cars_test_annos\.mat of the devkit"),
        (remove("devkit/cars_train_annos.mat"), r"cars_train_annos\.mat: this table of the release is missing"),
        (remove("devkit/cars_meta.mat"), r"cars_meta\.mat: this table of the release is missing"),
        (overwrite("devkit/cars_meta.mat", "no"), r"cars_meta\.mat: not a readable MATLAB file"),
        (mat("devkit/cars_meta.mat", names=[1]), r"cars_meta\.mat: variable 'class_names' is missing"),
        (mat("devkit/cars_meta.mat", class_names=cells("a", "b", "a")), r"class_names\(3\): class 'a' is there twice"),
        (
            mat("devkit/cars_meta.mat", class_names=cells("a", 2.0)),
            r"cars_meta\.mat: class_names\(2\): no class's name",
        ),
        (
            mat("devkit/cars_train_annos.mat", annotations=[1, 2]),
            r"annos\.mat: variable 'annotations' is no list of str",
        ),
        (
            mat("cars_test_annos_withlabels.mat", annotations=annotations([1, 2], without="class")),
            r"withlabels\.mat: variable 'annotations' .* field 'class'",
        ),
        (train_annotations(label=4), r"cars_train_annos\.mat: annotations\(2\): field 'class': 4 is none of 1 to 3"),
        (train_annotations(label=0), r"annotations\(2\): field 'class': 0 is none of 1 to 3"),
        (train_annotations(label="x"), r"annotations\(2\): field 'class': x is none of 1 to 3"),
        (train_annotations(label=1.5), r"annotations\(2\): field 'class': 1\.5 is none of 1 to 3"),
        (train_annotations(fname="../x.jpg"), r"annotations\(2\): field 'fname': '../x\.jpg' is no file's name"),
        (train_annotations(fname=3), r"annotations\(2\): field 'fname': '3' is no file's name"),
        (train_annotations(fname="00001.jpg"), r"cars_train/00001\.jpg: listed twice"),
    ],
    "cars?boxes=true": [
        (train_annotations(without="bbox_x2"), r"cars_train_annos\.mat: .* field 'bbox_x2'"),
        (train_annotations(bbox_x2="wide"), r"annotations\(2\): field 'bbox_x2': 'wide' is no number"),
        (train_annotations(bbox_x2=3), r"annotations\(2\): a box from 17, 1 to 3, 16 px holds nothing"),
    ],
    "flowers102": [
        (remove("setid.mat"), r"setid\.mat: this table of the release is missing"),
        (remove("imagelabels.mat"), r"imagelabels\.mat: this table of the release is missing"),
        (overwrite("setid.mat", b"\0" * 300), r"setid\.mat: not a readable MATLAB file"),
        (mat("setid.mat", trnid=[1], valid=[2]), r"setid\.mat: variable 'tstid' is missing"),
        (mat("setid.mat", trnid=[1], valid=[2, 11], tstid=[3]), r"valid\(2\): image 11 is none of 1 to 10"),
        (mat("setid.mat", trnid=[1], valid=[0], tstid=[3]), r"valid\(1\): image 0 is none of 1 to 10"),
        (mat("setid.mat", trnid=[4, 1], valid=[2], tstid=[1]), r"tstid\(1\): image 1 is also in trnid\(2\)"),
        (mat("setid.mat", trnid=["a"], valid=[2], tstid=[1]), r"variable 'trnid' is no list of numbers"),
        (mat("setid.mat", trnid=np.eye(2), valid=[2], tstid=[1]), r"variable 'trnid' is no list of numbers"),
        (mat("setid.mat", trnid=[1.5], valid=[2], tstid=[1]), r"trnid\(1\): image 1\.5 is none of 1 to 10"),
        (mat("imagelabels.mat", labels=[1, 103]), r"imagelabels\.mat: labels\(2\): class 103 is none of 1 to 102"),
    ],
    "food101": [
        (remove("meta/test.json"), r"test\.json: this table of the release is missing"),
        (overwrite("meta/test.json", '{\n"a": [}'), r"test\.json: line 2: not valid JSON"),
        (overwrite("meta/test.json", "[]"), r"test\.json: no object with each class's images"),
        (overwrite("meta/test.json", '{"a": "b"}'), r"test\.json: class 'a' has no list of images"),
        (overwrite("meta/test.json", '{"a": ["a/1", 3]}'), r"test\.json: image 2 of class 'a': '3' is no path"),
        (overwrite("meta/test.json", '{"a": ["../../b"]}'), r"image 1 of class 'a': '../../b' is no path below"),
        (overwrite("meta/test.json", '{"a": ["/etc/b"]}'), r"image 1 of class 'a': '/etc/b' is no path below"),
        (overwrite("meta/test.json", '{"a": ["\\ud800"]}'), r"image 1 of class 'a': .* is no path of an image"),
        (overwrite("meta/test.json", '{"": ["a/1"]}'), r"test\.json: '' is no class's name"),
        (overwrite("meta/test.json", '{"a": ["a/1", "a/1"]}'), r"image 2 of class 'a': 'a/1' is there twice"),
        (overwrite("meta/test.json", '{"a": ["waffles/1"]}'), r"also as image 1 of class 'waffles' in meta/train"),
    ],
}


@pytest.mark.parametrize(
    ("reference", "change", "message"),
    [(reference, *case) for reference, cases in BROKEN.items() for case in cases],
)
def test_a_broken_table_is_one_error_that_names_its_place(
    reference: str, change: Make, message: str, root: Path
) -> None:
    folder = folder_of(root, reference.partition("?")[0])
    change(folder)
    with pytest.raises(BadInput) as caught:
        resolve(reference, str(root))
    said = str(caught.value)
    assert re.search(message, said)
    assert said.startswith(str(folder))
    assert "\n" not in said


def test_an_annotation_that_expands_entities_is_refused(root: Path) -> None:
    folder = folder_of(root, "pets")
    levels = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 9))
    bomb = f'<!DOCTYPE a [<!ENTITY e0 "x">{levels}]><a>&e8;</a>'
    for data in (bomb.encode(), bomb.encode("utf-16"), b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>'):
        (folder / HEADS).write_bytes(data)
        with pytest.raises(BadInput, match=r"Bengal_7\.xml: .*it declares a document type"):
            resolve("pets?boxes=true", str(root))


def test_what_torchvision_raises_names_the_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("labels")

    folder = folder_of(root, "aircraft")
    monkeypatch.setattr(torchvision.datasets, "FGVCAircraft", broken)
    with pytest.raises(BadInput, match=r"cannot read the tables of this release \(KeyError: 'labels'\)") as caught:
        resolve("aircraft", str(root))
    assert str(caught.value).startswith(f"{folder}: ")


def tables_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".txt", ".json", ".mat", ".xml"))


@pytest.mark.parametrize("name", RELEASES)
def test_tables_with_random_bytes_are_read_or_one_clear_error(name: str, root: Path) -> None:
    folder, chance = folder_of(root, name), random.Random(name)
    layout, tree = find_layout(name), open_tree(str(folder))
    stamps = tree.scan()
    for _ in range(60):
        table = chance.choice(tables_of(folder))
        whole = table.read_bytes()
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        table.write_bytes(damaged[: chance.choice([len(damaged)] * 3 + [chance.randrange(len(damaged))])])
        rows, error = rows_or_error(lambda: layout.rows(tree, stamps, "", layout.boxes))
        assert str(error).startswith(str(folder)) if error else all(row.split in SPLITS and row.label for row in rows)
        table.write_bytes(whole)


def rows_or_error(read: Callable[[], list[Row]]) -> tuple[list[Row], BenchError | None]:
    try:
        return read(), None
    except BenchError as error:
        return [], error
