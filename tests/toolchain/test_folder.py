"""Two classes in three splits, made by hand and then spoilt in every way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_folders import PREPROCESSING, append_line, change_line, labels, numbers, paint, problems_of, write
from PIL import Image

from toolchain.data.sources import files_of, open_data
from toolchain.errors import DataError, UsageError

IMAGES = {
    1: "train/cat/b.png",
    2: "train/cat/a.PNG",
    3: "train/ape/c.jpg",
    4: "val/cat/my cat 2.png",
    5: "val/ape/e.jpeg",
    6: "test/cat/f.bmp",
    7: "test/ape/g.webp",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, path in IMAGES.items():
        paint(tmp_path / path, number)
    write(tmp_path / "boxes.txt", ["val/cat/my cat 2.png 20 10 30 20 0 0 60 40", "val/ape/e.jpeg 20 10 30 20"])
    return tmp_path


def opened(folder: Path, split: str, size: int | None = None):
    return open_data(f"folder:{folder}", split, PREPROCESSING, size)


def test_images_are_in_the_order_of_class_and_name(folder):
    assert [numbers(opened(folder, split)) for split in ("train", "val", "test")] == [[3, 2, 1], [5, 4], [7, 6]]
    assert [labels(opened(folder, split)) for split in ("train", "val", "test")] == [[0, 1, 1], [0, 1], [0, 1]]
    assert opened(folder, "test").class_names == ("ape", "cat")


def test_boxes_are_of_the_image_whose_path_is_before_the_numbers(folder):
    ape, cat = opened(folder, "val")
    assert (ape.name, ape.boxes) == ("val/ape/e.jpeg", ((3, 3, 8, 8),))
    assert (cat.name, cat.boxes) == ("val/cat/my cat 2.png", ((3, 3, 8, 8), (0, 0, 16, 16)))


def test_boxes_need_not_be_known(folder):
    (folder / "boxes.txt").unlink()
    sample = opened(folder, "val")[0]
    assert sample.boxes == ()
    with pytest.raises(DataError, match=r"val/ape/e\.jpeg has no box"):
        _ = sample.box


def test_some_training_images_may_have_boxes(folder):
    append_line(folder / "boxes.txt", "train/cat/b.png 20 10 30 20")
    assert [sample.boxes for sample in opened(folder, "train")] == [(), (), ((3, 3, 8, 8),)]


def test_what_is_no_image_is_left_alone(folder):
    write(folder / "train" / "notes.txt", ["of mine"])
    write(folder / "train" / "cat" / "notes.txt", ["of mine"])
    write(folder / "train" / ".cache" / "x.png", ["of some program"])
    write(folder / "train" / "cat" / "._b.png", ["of a file system"])
    assert numbers(opened(folder, "train")) == [3, 2, 1]


def test_fewer_images_are_spread_over_the_split(folder):
    assert numbers(opened(folder, "train", size=2)) == [3, 2]
    assert len(opened(folder, "train", size=9)) == 3


def test_images_without_a_box_are_not_opened(folder):
    (folder / IMAGES[3]).write_bytes(b"no image")
    train = opened(folder, "train")
    with pytest.raises(DataError, match=r"train/ape/c\.jpg is no readable image"):
        train[0]


SUFFIXES = "jpg, jpeg, png, bmp, webp, gif, tif, tiff, ppm"
FORM = "PATH X0 Y0 X1 Y1 [MORE BOXES] with PATH below the data set's folder"

DEFECTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no split": (lambda f: shutil.rmtree(f / "test"), ["test: missing."]),
    "no classes": (
        lambda f: [shutil.rmtree(f / "test" / name) for name in ("ape", "cat")],
        ["test: holds no folders, one for each class."],
    ),
    "an empty class": (
        lambda f: (f / IMAGES[7]).unlink(),
        [f"test/ape: holds no images ({SUFFIXES})."],
    ),
    "a class that a split has not": (
        lambda f: shutil.rmtree(f / "test" / "ape"),
        ["test/ape: missing, and train has this class: all splits need the same classes."],
    ),
    "a class that one split alone has": (
        lambda f: paint(f / "test" / "dog" / "d.png", 9),
        [
            "train/dog: missing, and test has this class: all splits need the same classes.",
            "val/dog: missing, and test has this class: all splits need the same classes.",
        ],
    ),
    "a folder in a class": (
        lambda f: paint(f / "train" / "cat" / "black" / "d.png", 9),
        ["train/cat/black: is a folder in a class: put its images into train/cat."],
    ),
    "no box": (
        lambda f: append_line(f / "boxes.txt", "train/cat/b.png"),
        [f"boxes.txt:3: 'train/cat/b.png' is not of the form {FORM}."],
    ),
    "no path": (
        lambda f: append_line(f / "boxes.txt", "1 2 3 4"),
        [f"boxes.txt:3: '1 2 3 4' is not of the form {FORM}."],
    ),
    "a box of three numbers": (
        lambda f: append_line(f / "boxes.txt", "train/cat/b.png 1 2 3"),
        [f"boxes.txt:3: 'train/cat/b.png 1 2 3' is not of the form {FORM}."],
    ),
    "no finite number": (
        lambda f: append_line(f / "boxes.txt", "train/cat/b.png 1 2 nan 4"),
        [f"boxes.txt:3: 'train/cat/b.png 1 2 nan 4' is not of the form {FORM}."],
    ),
    "a word for a number": (
        lambda f: append_line(f / "boxes.txt", "train/cat/b.png 1 2 3 wide"),
        [f"boxes.txt:3: 'train/cat/b.png 1 2 3 wide' is not of the form {FORM}."],
    ),
    "a path out of the folder": (
        lambda f: append_line(f / "boxes.txt", "../cat/b.png 1 2 3 4"),
        [f"boxes.txt:3: '../cat/b.png 1 2 3 4' is not of the form {FORM}."],
    ),
    "an image listed twice": (
        lambda f: append_line(f / "boxes.txt", "./val//ape/e.jpeg 1 2 3 4"),
        ["boxes.txt:3: val/ape/e.jpeg is listed a second time (first in line 2)."],
    ),
    "a missing image": (
        lambda f: append_line(f / "boxes.txt", "train/cat/z.png 1 2 3 4"),
        ["boxes.txt:3: there is no image train/cat/z.png: correct the path or remove the line."],
    ),
    "an empty box": (
        lambda f: change_line(f / "boxes.txt", 2, "val/ape/e.jpeg 20 10 20 20"),
        ["boxes.txt:2: the box 20 10 20 20 of val/ape/e.jpeg is empty."],
    ),
    "a box out of its image": (
        lambda f: change_line(f / "boxes.txt", 2, "val/ape/e.jpeg 20 10 30 20 50 30 61.5 40"),
        ["boxes.txt:2: the box 50 30 61.5 40 of val/ape/e.jpeg reaches out of its image of 60 x 40 pixels."],
    ),
    "an image left out": (
        lambda f: change_line(f / "boxes.txt", 2, None),
        ["val/ape/e.jpeg: has no line in boxes.txt, and other images of val have one."],
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_named_with_path_or_line(folder, defect):
    spoil, expected = DEFECTS[defect]
    spoil(folder)
    assert problems_of(f"folder:{folder}") == expected


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_all_defects_are_listed_at_once_whatever_the_split(folder, split):
    # Nothing follows from another of these.
    planted = ["an empty class", "a folder in a class", "a missing image", "an image listed twice", "an empty box"]
    expected = []
    for defect in planted:
        spoil, problems = DEFECTS[defect]
        spoil(folder)
        expected += [p.replace("boxes.txt:3", "boxes.txt:4") if "second time" in p else p for p in problems]
    assert sorted(problems_of(f"folder:{folder}", split)) == sorted(expected)


def test_an_unreadable_image_with_a_box_is_named(folder):
    (folder / IMAGES[5]).write_bytes(b"no image")
    (problem,) = problems_of(f"folder:{folder}")
    assert problem.startswith("boxes.txt:2: val/ape/e.jpeg is no readable image (")


def test_a_box_may_end_one_pixel_beyond(folder):
    change_line(folder / "boxes.txt", 2, "val/ape/e.jpeg -1 -1 61 41")
    assert opened(folder, "val")[0].boxes == ((0, 0, 16, 16),)


@pytest.mark.parametrize("suffix", ["gif", "tif", "tiff", "ppm"])
def test_rarer_formats_are_images_too(folder, suffix):
    Image.new("RGB", (20, 20), (255, 0, 0)).save(folder / "train" / "cat" / f"z.{suffix}")
    assert numbers(opened(folder, "train")) == [3, 2, 1, 255]


def test_boxes_decide_the_content_as_far_as_they_are_listed(folder):
    assert files_of(f"folder:{folder}", PREPROCESSING) == {"boxes.txt": folder / "boxes.txt"}
    (folder / "boxes.txt").unlink()
    assert files_of(f"folder:{folder}", PREPROCESSING) == {}
    shutil.rmtree(folder / "val")
    with pytest.raises(DataError) as caught:
        files_of(f"folder:{folder}", PREPROCESSING)
    assert caught.value.problems == ("val: is missing.",)


@pytest.mark.parametrize(("name", "message"), [("nowhere", "is no folder"), (".", "holds none of train, val, test")])
def test_a_folder_of_something_else_is_refused(tmp_path, name, message):
    with pytest.raises(DataError, match=f"{message}: name the folder that holds the folders train, val and test"):
        opened(tmp_path / name, "train")


@pytest.mark.parametrize(("split", "size"), [("trainval", None), ("train", 0)])
def test_what_cannot_be_meant_is_refused(folder, split, size):
    with pytest.raises(UsageError):
        opened(folder, split, size)
