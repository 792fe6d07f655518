"""A folder of two classes and 20 images, made by hand and then spoilt in every way."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_folders import PREPROCESSING, change_line, numbers, paint, write
from PIL import Image

from toolchain.data.cub import Cub
from toolchain.data.sources import open_data
from toolchain.errors import DataError, UsageError

CLASSES = ("001.Albatross", "002.Bunting")
# Images 1 to 10 are of the first class, 11 to 20 of the second; the last two of each are for testing.
IMAGES = {i: f"{CLASSES[(i - 1) // 10]}/bird_{i:02d}.png" for i in range(1, 21)}


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    folder = tmp_path / "CUB_200_2011"
    for number, path in IMAGES.items():
        paint(folder / "images" / path, number)
    write(folder / "classes.txt", ["1 001.Albatross", "2 002.Bunting"])
    write(folder / "images.txt", [f"{i} {path}" for i, path in IMAGES.items()])
    write(folder / "image_class_labels.txt", [f"{i} {1 + (i - 1) // 10}" for i in IMAGES])
    write(folder / "train_test_split.txt", [f"{i} {int((i - 1) % 10 < 8)}" for i in IMAGES])
    write(folder / "bounding_boxes.txt", [f"{i} 20.0 10.0 {i}.0 12.0" for i in IMAGES])
    return folder


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(DataError) as caught:
        Cub(folder, "train", PREPROCESSING)
    return list(caught.value.problems)


def test_val_is_every_eighth_training_image_of_a_class(cub):
    train, val, test = (Cub(cub, split, PREPROCESSING) for split in ("train", "val", "test"))
    assert numbers(train) == [*range(1, 8), *range(11, 18)]
    assert numbers(val) == [8, 18]
    assert numbers(test) == [9, 10, 19, 20]


def test_samples_carry_label_box_and_name(cub):
    # 60 x 40 halves to 30 x 20, and the crop of 16 begins at (7, 2).
    sample = Cub(cub, "test", PREPROCESSING)[2]
    assert sample.image.shape == (16, 16, 3)
    assert sample.label == 1
    assert sample.box == (3, 3, 3 + 19 / 2, 9)
    assert sample.name == "002.Bunting/bird_19.png"


def test_class_names_lose_their_number(cub):
    assert Cub(cub, "train", PREPROCESSING).class_names == ("Albatross", "Bunting")


def test_the_folder_above_is_as_good(cub):
    assert len(Cub(cub.parent, "test", PREPROCESSING)) == 4
    assert len(open_data(f"cub:{cub.parent}", "test", PREPROCESSING)) == 4


def test_fewer_images_are_spread_over_the_classes(cub):
    assert numbers(open_data(f"cub:{cub}", "train", PREPROCESSING, size=4)) == [1, 4, 11, 14]
    assert len(open_data(f"cub:{cub}", "train", PREPROCESSING, size=100)) == 14


def test_it_travels_to_other_processes(cub):
    data = pickle.loads(pickle.dumps(Cub(cub, "test", PREPROCESSING)))
    assert numbers(data) == [9, 10, 19, 20]


def test_indices_end_with_the_split(cub):
    with pytest.raises(IndexError):
        Cub(cub, "val", PREPROCESSING)[2]


DEFECTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "malformed line": (
        lambda f: change_line(f / "train_test_split.txt", 3, "3 yes"),
        ["train_test_split.txt:3: '3 yes' is not of the form IMAGE_ID 1|0."],
    ),
    "a word for a number": (
        lambda f: change_line(f / "bounding_boxes.txt", 4, "4 20 10 wide 12"),
        ["bounding_boxes.txt:4: '4 20 10 wide 12' is not of the form IMAGE_ID X Y WIDTH HEIGHT."],
    ),
    "no finite number": (
        lambda f: change_line(f / "bounding_boxes.txt", 4, "4 20 10 nan 12"),
        ["bounding_boxes.txt:4: '4 20 10 nan 12' is not of the form IMAGE_ID X Y WIDTH HEIGHT."],
    ),
    "too few numbers": (
        lambda f: change_line(f / "bounding_boxes.txt", 4, "4 20 10 3"),
        ["bounding_boxes.txt:4: '4 20 10 3' is not of the form IMAGE_ID X Y WIDTH HEIGHT."],
    ),
    "a path out of the folder": (
        lambda f: change_line(f / "images.txt", 1, "1 ../../bird.png"),
        ["images.txt:1: '1 ../../bird.png' is not of the form IMAGE_ID PATH."],
    ),
    "no label": (
        lambda f: change_line(f / "image_class_labels.txt", 2, None),
        ["images.txt:2: image 2 (001.Albatross/bird_02.png) has no line in image_class_labels.txt."],
    ),
    "no split": (
        lambda f: change_line(f / "train_test_split.txt", 5, None),
        ["images.txt:5: image 5 (001.Albatross/bird_05.png) has no line in train_test_split.txt."],
    ),
    "no box": (
        lambda f: change_line(f / "bounding_boxes.txt", 20, None),
        ["images.txt:20: image 20 (002.Bunting/bird_20.png) has no line in bounding_boxes.txt."],
    ),
    "a label of no image": (
        lambda f: change_line(f / "image_class_labels.txt", 21, "77 1"),
        ["image_class_labels.txt:21: image 77 is not in images.txt."],
    ),
    "a label of no class": (
        lambda f: change_line(f / "image_class_labels.txt", 6, "6 3"),
        ["image_class_labels.txt:6: class 3 is not in classes.txt."],
    ),
    "a class of no image": (
        lambda f: change_line(f / "classes.txt", 3, "3 003.Cardinal"),
        ["classes.txt:3: class 3 (003.Cardinal) has no images."],
    ),
    "a missing image": (
        lambda f: (f / "images" / IMAGES[7]).unlink(),
        ["images.txt:7: images/001.Albatross/bird_07.png is missing."],
    ),
    "an id listed twice": (
        lambda f: change_line(f / "image_class_labels.txt", 21, "20 1"),
        ["image_class_labels.txt:21: id 20 is listed a second time."],
    ),
    "an image listed twice": (
        lambda f: change_line(f / "images.txt", 9, f"9 {IMAGES[8]}"),
        ["images.txt:9: 001.Albatross/bird_08.png is listed a second time (first in line 8)."],
    ),
    "an empty box": (
        lambda f: change_line(f / "bounding_boxes.txt", 12, "12 20 10 0 12"),
        ["bounding_boxes.txt:12: the box 20 10 0 12 of 002.Bunting/bird_12.png is empty."],
    ),
    "a box out of its image": (
        lambda f: change_line(f / "bounding_boxes.txt", 13, "13 50 10 20 12"),
        [
            "bounding_boxes.txt:13: the box 50 10 20 12 of 002.Bunting/bird_13.png reaches out of its image of "
            "60 x 40 pixels."
        ],
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_named_with_file_and_line(cub, defect):
    spoil, expected = DEFECTS[defect]
    spoil(cub)
    assert problems_of(cub) == expected


def test_an_unreadable_image_is_named(cub):
    (cub / "images" / IMAGES[14]).write_bytes(b"no image")
    (problem,) = problems_of(cub)
    assert problem.startswith("images.txt:14: images/002.Bunting/bird_14.png is no readable image")


def test_all_defects_are_listed_at_once(cub):
    planted = [
        "malformed line",
        "no label",
        "no box",
        "a class of no image",
        "a missing image",
        "an empty box",
        "a box out of its image",
    ]
    expected = []
    for defect in planted:
        spoil, problems = DEFECTS[defect]
        spoil(cub)
        expected += problems
    assert sorted(problems_of(cub)) == sorted(expected)


@pytest.mark.parametrize(
    "name",
    ["classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt", "images"],
)
def test_a_missing_list_is_one_problem(cub, name):
    path = cub / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert problems_of(cub) == [f"{name}: missing."]


def test_a_list_that_is_no_text_is_one_problem(cub):
    (cub / "classes.txt").write_bytes(b"\xff\xfe\x00")
    (problem,) = problems_of(cub)
    assert problem.startswith("classes.txt: cannot be read as text")


def test_a_box_may_end_one_pixel_beyond(cub):
    change_line(cub / "bounding_boxes.txt", 1, "1 1 1 60 40")
    assert Cub(cub, "train", PREPROCESSING)[0].box == (0, 0, 16, 16)


def test_an_empty_split_is_refused(cub):
    write(cub / "train_test_split.txt", [f"{i} 1" for i in IMAGES])
    with pytest.raises(DataError, match="no images in its split 'test'"):
        Cub(cub, "test", PREPROCESSING)


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_a_folder_of_something_else_is_refused(tmp_path, folder):
    with pytest.raises(DataError, match="name the folder that CUB-200-2011 was unpacked to"):
        Cub(tmp_path / folder, "train", PREPROCESSING)


@pytest.mark.parametrize(("split", "size"), [("trainval", None), ("train", 0)])
def test_what_cannot_be_meant_is_refused(cub, split, size):
    with pytest.raises(UsageError):
        Cub(cub, split, PREPROCESSING, size)


def test_an_image_cut_short_is_found_when_it_is_asked_for(cub):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    file = cub / "images" / IMAGES[9]
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:3000])
    data = Cub(cub, "test", PREPROCESSING)
    with pytest.raises(DataError, match=r"bird_09\.png is no readable image"):
        data[0]
