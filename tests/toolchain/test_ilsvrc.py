"""Two classes, five training and twenty listed images, made by hand and then spoilt in every way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_folders import PREPROCESSING, append_line, change_line, labels, numbers, paint, problems_of, write

from toolchain.data.sources import files_of, open_data
from toolchain.errors import DataError, UsageError

TRAINED = {1: "n02/a.JPEG", 2: "n02/b.jpeg", 3: "n01/x.JPEG", 4: "n01/y.JPEG", 5: "n01/z.JPEG"}
LISTED = {number: f"listed_{number}.JPEG" for number in range(11, 31)}


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    for number, path in TRAINED.items():
        paint(tmp_path / "train" / path, number)
    for number, path in LISTED.items():
        paint(tmp_path / "val" / path, number)
    # Odd numbers are of the first class. The last image has two boxes.
    lines = [f"{path} {1 - number % 2} 20 10 30 20" for number, path in LISTED.items()]
    write(tmp_path / "val.txt", [*lines[:-1], f"{lines[-1]} 0 0 60 40"])
    return tmp_path


def opened(folder: Path, split: str, size: int | None = None):
    return open_data(f"ilsvrc:{folder}", split, PREPROCESSING, size)


def test_training_images_are_in_the_order_of_class_and_name(ilsvrc):
    train = opened(ilsvrc, "train")
    assert numbers(train) == [3, 4, 5, 1, 2]
    assert labels(train) == [0, 0, 0, 1, 1]
    assert train.class_names == ("n01", "n02")
    assert (train[0].name, train[0].boxes) == ("train/n01/x.JPEG", ())


def test_val_is_every_tenth_listed_image_and_test_the_rest(ilsvrc):
    assert numbers(opened(ilsvrc, "val")) == [20, 30]
    assert numbers(opened(ilsvrc, "test")) == [*range(11, 20), *range(21, 30)]


def test_an_image_may_have_several_boxes(ilsvrc):
    first, last = opened(ilsvrc, "val")[0], opened(ilsvrc, "val")[1]
    assert (first.name, first.label, first.boxes) == ("val/listed_20.JPEG", 1, ((3, 3, 8, 8),))
    assert (last.name, last.label, last.boxes) == ("val/listed_30.JPEG", 1, ((3, 3, 8, 8), (0, 0, 16, 16)))


def test_fewer_images_are_spread_over_the_split(ilsvrc):
    assert numbers(opened(ilsvrc, "test", size=3)) == [11, 17, 24]
    assert numbers(opened(ilsvrc, "train", size=2)) == [3, 5]
    assert len(opened(ilsvrc, "train", size=50)) == 5


def test_paths_may_begin_with_the_folder(ilsvrc):
    change_line(ilsvrc / "val.txt", 1, "val/listed_11.JPEG 0 20 10 30 20")
    assert opened(ilsvrc, "test")[0].name == "val/listed_11.JPEG"


@pytest.mark.parametrize("name", ["classes.txt", "LOC_synset_mapping.txt"])
def test_classes_may_have_names(ilsvrc, name):
    write(ilsvrc / name, ["n02 goldfish, Carassius auratus", "n01 tench", "n03 of no image here"])
    assert opened(ilsvrc, "val").class_names == ("tench", "goldfish, Carassius auratus")


def test_what_is_no_training_image_is_left_alone(ilsvrc):
    write(ilsvrc / "train" / "n01.tar", ["archive"])
    write(ilsvrc / "train" / "n01" / "notes.txt", ["of mine"])
    write(ilsvrc / "train" / "n01" / "._x.JPEG", ["of a file system"])
    write(ilsvrc / "train" / ".cache" / "x", ["of some program"])
    assert len(opened(ilsvrc, "train")) == 5


def test_training_images_are_not_opened(ilsvrc):
    (ilsvrc / "train" / TRAINED[3]).write_bytes(b"no image")
    train = opened(ilsvrc, "train")
    with pytest.raises(DataError, match=r"train/n01/x\.JPEG is no readable image"):
        train[0]


DEFECTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no box": (
        lambda f: change_line(f / "val.txt", 3, "listed_13.JPEG 0"),
        ["val.txt:3: 'listed_13.JPEG 0' is not of the form PATH LABEL X0 Y0 X1 Y1 [MORE BOXES] with PATH below val."],
    ),
    "a box of three numbers": (
        lambda f: change_line(f / "val.txt", 3, "listed_13.JPEG 0 1 2 3"),
        [
            "val.txt:3: 'listed_13.JPEG 0 1 2 3' is not of the form PATH LABEL X0 Y0 X1 Y1 [MORE BOXES] with PATH "
            "below val."
        ],
    ),
    "a second box of three numbers": (
        lambda f: change_line(f / "val.txt", 3, "listed_13.JPEG 0 1 2 3 4 5 6 7"),
        [
            "val.txt:3: 'listed_13.JPEG 0 1 2 3 4 5 6 7' is not of the form PATH LABEL X0 Y0 X1 Y1 [MORE BOXES] with "
            "PATH below val."
        ],
    ),
    "a word for a label": (
        lambda f: change_line(f / "val.txt", 3, "listed_13.JPEG n01 1 2 3 4"),
        [
            "val.txt:3: 'listed_13.JPEG n01 1 2 3 4' is not of the form PATH LABEL X0 Y0 X1 Y1 [MORE BOXES] with PATH "
            "below val."
        ],
    ),
    "no finite number": (
        lambda f: change_line(f / "val.txt", 3, "listed_13.JPEG 0 1 2 inf 4"),
        [
            "val.txt:3: 'listed_13.JPEG 0 1 2 inf 4' is not of the form PATH LABEL X0 Y0 X1 Y1 [MORE BOXES] with PATH "
            "below val."
        ],
    ),
    "a path out of the folder": (
        lambda f: append_line(f / "val.txt", "val/../../x.JPEG 0 1 2 3 4"),
        [
            "val.txt:21: 'val/../../x.JPEG 0 1 2 3 4' is not of the form PATH LABEL X0 Y0 X1 Y1 [MORE BOXES] with PATH "
            "below val."
        ],
    ),
    "an image listed twice": (
        lambda f: append_line(f / "val.txt", "val/listed_14.JPEG 1 1 2 3 4"),
        ["val.txt:21: listed_14.JPEG is listed a second time (first in line 4)."],
    ),
    "a missing image": (
        lambda f: (f / "val" / "listed_15.JPEG").unlink(),
        ["val.txt:5: val/listed_15.JPEG is missing."],
    ),
    "a label of no class": (
        lambda f: change_line(f / "val.txt", 6, "listed_16.JPEG 2 1 2 3 4"),
        ["val.txt:6: label 2 of listed_16.JPEG is out of range: train has 2 folders, 0 to 1."],
    ),
    "a label below zero": (
        lambda f: change_line(f / "val.txt", 6, "listed_16.JPEG -1 1 2 3 4"),
        ["val.txt:6: label -1 of listed_16.JPEG is out of range: train has 2 folders, 0 to 1."],
    ),
    "an empty box": (
        lambda f: change_line(f / "val.txt", 7, "listed_17.JPEG 0 30 10 20 20"),
        ["val.txt:7: the box 30 10 20 20 of listed_17.JPEG is empty."],
    ),
    "a box out of its image": (
        lambda f: change_line(f / "val.txt", 8, "listed_18.JPEG 1 1 2 3 4 20 10 60 42"),
        ["val.txt:8: the box 20 10 60 42 of listed_18.JPEG reaches out of its image of 60 x 40 pixels."],
    ),
    "an empty class": (
        lambda f: (f / "train" / "n03").mkdir(),
        ["train/n03: holds no images (*.JPEG)."],
    ),
    "a class without a name": (
        lambda f: write(f / "classes.txt", ["n01 tench"]),
        ["train/n02: has no line in classes.txt."],
    ),
    "an empty name": (
        lambda f: write(f / "classes.txt", ["n01 tench", "n02 "]),
        ["classes.txt:2: 'n02 ' is not of the form WNID NAME."],
    ),
    "a class named twice": (
        lambda f: write(f / "classes.txt", ["n01 tench", "n02 goldfish", "n01 eel"]),
        ["classes.txt:3: n01 is listed a second time (first in line 1)."],
    ),
    "no classes": (
        lambda f: [shutil.rmtree(f / "train" / name) for name in ("n01", "n02")],
        ["train: holds no folders, one for each class."],
    ),
    "no training images": (lambda f: shutil.rmtree(f / "train"), ["train: missing."]),
    "no listed images": (lambda f: shutil.rmtree(f / "val"), ["val: missing."]),
    "no list": (lambda f: (f / "val.txt").unlink(), ["val.txt: missing."]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_named_with_file_and_line(ilsvrc, defect):
    spoil, expected = DEFECTS[defect]
    spoil(ilsvrc)
    assert problems_of(f"ilsvrc:{ilsvrc}") == expected


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_all_defects_are_listed_at_once_whatever_the_split(ilsvrc, split):
    # Nothing follows from another of these.
    planted = ["an empty class", "an image listed twice", "a missing image", "an empty box", "a box out of its image"]
    expected = []
    for defect in planted:
        spoil, problems = DEFECTS[defect]
        spoil(ilsvrc)
        expected += problems
    assert sorted(problems_of(f"ilsvrc:{ilsvrc}", split)) == sorted(expected)


def test_an_unreadable_image_is_named(ilsvrc):
    (ilsvrc / "val" / "listed_19.JPEG").write_bytes(b"no image")
    (problem,) = problems_of(f"ilsvrc:{ilsvrc}")
    assert problem.startswith("val.txt:9: val/listed_19.JPEG is no readable image (")


def test_too_few_listed_images_leave_no_val(ilsvrc):
    write(ilsvrc / "val.txt", ["listed_11.JPEG 0 1 2 3 4"])
    with pytest.raises(DataError, match="has no images in its split 'val'"):
        opened(ilsvrc, "val")
    assert numbers(opened(ilsvrc, "test")) == [11]


def test_the_lists_decide_the_content(ilsvrc):
    assert files_of(f"ilsvrc:{ilsvrc}", PREPROCESSING) == {"val.txt": ilsvrc / "val.txt"}
    write(ilsvrc / "classes.txt", ["n01 tench", "n02 goldfish"])
    assert files_of(f"ilsvrc:{ilsvrc}", PREPROCESSING).keys() == {"val.txt", "classes.txt"}


@pytest.mark.parametrize("name", ["train", "val", "val.txt"])
def test_what_is_missing_is_told_at_a_glance(ilsvrc, name):
    shutil.rmtree(ilsvrc / name) if (ilsvrc / name).is_dir() else (ilsvrc / name).unlink()
    with pytest.raises(DataError) as caught:
        files_of(f"ilsvrc:{ilsvrc}", PREPROCESSING)
    assert caught.value.problems == (f"{name}: is missing.",)


@pytest.mark.parametrize(
    ("folder", "message"), [("nowhere", "is no folder"), (".", "holds none of train, val, val.txt")]
)
def test_a_folder_of_something_else_is_refused(tmp_path, folder, message):
    with pytest.raises(DataError, match=f"{message}: name the folder that holds ILSVRC's train, val and val.txt"):
        opened(tmp_path / folder, "train")


@pytest.mark.parametrize(("split", "size"), [("trainval", None), ("train", 0)])
def test_what_cannot_be_meant_is_refused(ilsvrc, split, size):
    with pytest.raises(UsageError):
        opened(ilsvrc, split, size)
