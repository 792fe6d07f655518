"""Eight images of three classes in three splits, made by hand and then spoilt in every way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from data_folders import PREPROCESSING, append_line, change_line, labels, numbers, paint, problems_of, write

from toolchain.data.sources import files_of, open_data
from toolchain.errors import DataError, UsageError

LABELLED = {
    "train": {"train/owl/1.png": 0, "train/jay/2.png": 1, "train/owl/3.png": 0, "train/jay, blue/4.png": 2},
    "val": {"held/6.png": 0, "held/7.png": 1},
    "test": {"held/9.png": 1, "held/8.png": 0},
}


@pytest.fixture
def wsol(tmp_path: Path) -> Path:
    """The folder above `meta` and `images`; nothing is known of the training images but their labels."""
    for split, labelled in LABELLED.items():
        for path in labelled:
            paint(tmp_path / "images" / path, int(Path(path).stem))
        write(tmp_path / "meta" / split / "image_ids.txt", labelled)
        write(tmp_path / "meta" / split / "class_labels.txt", [f"{path},{label}" for path, label in labelled.items()])
        if split != "train":
            write(tmp_path / "meta" / split / "localization.txt", [f"{path},20,10,30,20" for path in labelled])
            write(tmp_path / "meta" / split / "image_sizes.txt", [f"{path},60,40" for path in labelled])
    append_line(tmp_path / "meta" / "val" / "localization.txt", "held/6.png,0,0,60,40")
    return tmp_path


def spec_of(wsol: Path) -> str:
    return f"wsol:{wsol / 'meta'}:{wsol / 'images'}"


def opened(wsol: Path, split: str, size: int | None = None):
    return open_data(spec_of(wsol), split, PREPROCESSING, size)


def list_sizes_and_boxes_of_train(wsol: Path, box: str = "20,10,30,20") -> None:
    write(wsol / "meta" / "train" / "image_sizes.txt", [f"{path},60,40" for path in LABELLED["train"]])
    write(wsol / "meta" / "train" / "localization.txt", [f"train/owl/3.png,{box}"])


def test_splits_are_in_the_order_of_their_lists(wsol):
    assert [numbers(opened(wsol, split)) for split in ("train", "val", "test")] == [[1, 2, 3, 4], [6, 7], [9, 8]]
    assert [labels(opened(wsol, split)) for split in ("train", "val", "test")] == [[0, 1, 0, 2], [0, 1], [1, 0]]


def test_an_image_has_as_many_boxes_as_lines(wsol):
    val = opened(wsol, "val")
    assert (val[0].name, val[0].boxes) == ("held/6.png", ((3, 3, 8, 8), (0, 0, 16, 16)))
    assert (val[1].name, val[1].boxes) == ("held/7.png", ((3, 3, 8, 8),))


def test_training_images_may_have_boxes(wsol):
    assert opened(wsol, "train")[2].boxes == ()
    list_sizes_and_boxes_of_train(wsol)
    assert [sample.boxes for sample in opened(wsol, "train")] == [(), (), ((3, 3, 8, 8),), ()]


def test_a_class_is_called_by_the_folder_it_has_to_itself(wsol):
    assert opened(wsol, "test").class_names == ("owl", "jay", "jay, blue")


def test_a_class_without_a_folder_to_itself_is_called_by_its_number(wsol):
    # Two classes in one folder, and one class in two folders.
    for path, label in (("train/jay/10.png", 2), ("other/11.png", 0)):
        paint(wsol / "images" / path, 10)
        append_line(wsol / "meta" / "train" / "image_ids.txt", path)
        append_line(wsol / "meta" / "train" / "class_labels.txt", f"{path},{label}")
    assert opened(wsol, "train").class_names == ("0", "1", "2")


def test_classes_of_one_name_are_all_called_by_their_numbers(wsol):
    paint(wsol / "images" / "other/owl/10.png", 10)
    append_line(wsol / "meta" / "train" / "image_ids.txt", "other/owl/10.png")
    append_line(wsol / "meta" / "train" / "class_labels.txt", "other/owl/10.png,3")
    assert opened(wsol, "train").class_names == ("0", "1", "2", "3")


def test_fewer_images_are_spread_over_the_split(wsol):
    assert numbers(opened(wsol, "train", size=2)) == [1, 3]


def test_images_whose_size_is_listed_are_not_opened(wsol):
    list_sizes_and_boxes_of_train(wsol)
    for path in ("train/owl/3.png", "held/6.png"):
        (wsol / "images" / path).write_bytes(b"no image")
    assert len(opened(wsol, "train")) == 4


def line_of(split: str, name: str, line: int, text: str | None) -> Callable[[Path], None]:
    return lambda f: change_line(f / "meta" / split / name, line, text)


def more_of(split: str, name: str, text: str) -> Callable[[Path], None]:
    return lambda f: append_line(f / "meta" / split / name, text)


DEFECTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a path out of the folder": (
        more_of("val", "image_ids.txt", "../6.png"),
        ["val/image_ids.txt:3: '../6.png' is not of the form PATH below the folder of images."],
    ),
    "a path from the root": (
        more_of("val", "image_ids.txt", "/6.png"),
        ["val/image_ids.txt:3: '/6.png' is not of the form PATH below the folder of images."],
    ),
    "a word for a label": (
        line_of("train", "class_labels.txt", 3, "train/owl/3.png,owl"),
        ["train/class_labels.txt:3: 'train/owl/3.png,owl' is not of the form PATH,LABEL."],
    ),
    "a mask for a box": (
        line_of("val", "localization.txt", 2, "held/7.png,masks/7.png,"),
        ["val/localization.txt:2: 'held/7.png,masks/7.png,' is not of the form PATH,X0,Y0,X1,Y1."],
    ),
    "no finite number": (
        line_of("val", "localization.txt", 2, "held/7.png,1,2,nan,4"),
        ["val/localization.txt:2: 'held/7.png,1,2,nan,4' is not of the form PATH,X0,Y0,X1,Y1."],
    ),
    "one number for a size": (
        line_of("test", "image_sizes.txt", 1, "held/9.png,60"),
        ["test/image_sizes.txt:1: 'held/9.png,60' is not of the form PATH,WIDTH,HEIGHT."],
    ),
    "no width": (
        line_of("test", "image_sizes.txt", 1, "held/9.png,0,40"),
        ["test/image_sizes.txt:1: 'held/9.png,0,40' is not of the form PATH,WIDTH,HEIGHT."],
    ),
    "an image listed twice": (
        more_of("test", "image_ids.txt", "./held/9.png"),
        ["test/image_ids.txt:3: held/9.png is listed a second time (first in line 1)."],
    ),
    "an image labelled twice": (
        more_of("val", "class_labels.txt", "held/6.png,1"),
        ["val/class_labels.txt:3: held/6.png is listed a second time (first in line 1)."],
    ),
    "no label": (
        line_of("val", "class_labels.txt", 1, None),
        ["val/image_ids.txt:1: held/6.png has no line in val/class_labels.txt."],
    ),
    "no box": (
        line_of("val", "localization.txt", 2, None),
        ["val/image_ids.txt:2: held/7.png has no line in val/localization.txt."],
    ),
    "no size": (
        line_of("test", "image_sizes.txt", 2, None),
        ["test/image_ids.txt:2: held/8.png has no line in test/image_sizes.txt."],
    ),
    "a label of no image": (
        more_of("test", "class_labels.txt", "held/77.png,0"),
        ["test/class_labels.txt:3: held/77.png is not in test/image_ids.txt."],
    ),
    "a box of no image": (
        more_of("test", "localization.txt", "held/6.png,1,2,3,4"),
        ["test/localization.txt:3: held/6.png is not in test/image_ids.txt."],
    ),
    "a label that no training image has": (
        line_of("test", "class_labels.txt", 1, "held/9.png,3"),
        ["test/class_labels.txt:1: label 3 of held/9.png is that of no training image."],
    ),
    "a label below zero": (
        line_of("train", "class_labels.txt", 3, "train/owl/3.png,-2"),
        ["train/class_labels.txt:3: label -2 of train/owl/3.png is negative: classes are numbered from 0."],
    ),
    "an empty class": (
        line_of("train", "class_labels.txt", 4, "train/jay, blue/4.png,4"),
        ["train/class_labels.txt: labels reach 4, but no image has 2, 3: number classes without gaps."],
    ),
    "any number of empty classes": (
        line_of("train", "class_labels.txt", 4, "train/jay, blue/4.png,1000000000000"),
        [
            "train/class_labels.txt: labels reach 1000000000000, but no image has 2, 3, 4, 5, 6 and more: number "
            "classes without gaps."
        ],
    ),
    "an empty box": (
        line_of("val", "localization.txt", 2, "held/7.png,20,10,30,10"),
        ["val/localization.txt:2: the box 20 10 30 10 of held/7.png is empty."],
    ),
    "a box out of its image": (
        line_of("val", "localization.txt", 3, "held/6.png,-2,10,30,20"),
        ["val/localization.txt:3: the box -2 10 30 20 of held/6.png reaches out of its image of 60 x 40 pixels."],
    ),
    "a split is missing": (lambda f: shutil.rmtree(f / "meta" / "test"), ["test: missing."]),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_each_defect_is_named_with_file_and_line(wsol, defect):
    spoil, expected = DEFECTS[defect]
    spoil(wsol)
    assert problems_of(spec_of(wsol)) == expected


@pytest.mark.parametrize(
    ("split", "name"),
    [(split, name) for split in ("train", "val") for name in ("image_ids.txt", "class_labels.txt")]
    + [("val", "localization.txt"), ("test", "image_sizes.txt")],
)
def test_a_missing_list_is_one_problem(wsol, split, name):
    (wsol / "meta" / split / name).unlink()
    assert problems_of(spec_of(wsol)) == [f"{split}/{name}: missing."]
    with pytest.raises(DataError) as caught:
        files_of(spec_of(wsol), PREPROCESSING)
    assert caught.value.problems == (f"{split}/{name}: is missing.",)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_all_defects_are_listed_at_once_whatever_the_split(wsol, split):
    # Nothing follows from another of these.
    planted = ["an image listed twice", "no size", "a label of no image", "a box out of its image", "an empty class"]
    expected = []
    for defect in planted:
        spoil, problems = DEFECTS[defect]
        spoil(wsol)
        expected += problems
    assert sorted(problems_of(spec_of(wsol), split)) == sorted(expected)


def test_a_missing_image_is_named(wsol):
    file = wsol / "images" / "train/owl/3.png"
    file.unlink()
    assert problems_of(spec_of(wsol), "test") == [f"train/image_ids.txt:3: {file} is missing."]


@pytest.mark.parametrize("sizes", ["listed", "not listed"])
def test_a_missing_folder_of_images_is_one_problem(wsol, sizes):
    list_sizes_and_boxes_of_train(wsol)
    if sizes == "not listed":
        (wsol / "meta" / "train" / "image_sizes.txt").unlink()
    shutil.rmtree(wsol / "images" / "train")
    assert problems_of(spec_of(wsol)) == [
        f"train/image_ids.txt: {wsol / 'images' / 'train'}, the folder of 4 of its images, is missing."
    ]


def test_an_image_of_two_splits_is_named(wsol):
    append_line(wsol / "meta" / "train" / "image_ids.txt", "held/8.png")
    append_line(wsol / "meta" / "train" / "class_labels.txt", "held/8.png,0")
    assert problems_of(spec_of(wsol)) == [
        "test/image_ids.txt:2: held/8.png is in train/image_ids.txt too: an image belongs to one split."
    ]


def test_a_training_box_is_checked_by_the_header_where_no_size_is_listed(wsol):
    list_sizes_and_boxes_of_train(wsol, box="20,10,70,20")
    (wsol / "meta" / "train" / "image_sizes.txt").unlink()
    assert problems_of(spec_of(wsol)) == [
        "train/localization.txt:1: the box 20 10 70 20 of train/owl/3.png reaches out of its image of 60 x 40 pixels."
    ]


@pytest.mark.parametrize("content", [None, b"no image"])
def test_a_training_image_without_a_header_is_named_once(wsol, content):
    list_sizes_and_boxes_of_train(wsol)
    (wsol / "meta" / "train" / "image_sizes.txt").unlink()
    file = wsol / "images" / "train/owl/3.png"
    file.unlink() if content is None else file.write_bytes(content)
    (problem,) = problems_of(spec_of(wsol))
    assert problem.startswith(f"train/image_ids.txt:3: {file} is {'missing.' if content is None else 'no readable'}")


def test_the_lists_decide_the_content(wsol):
    held = {f"{split}/{name}.txt" for split in ("val", "test") for name in ("localization", "image_sizes")}
    all_splits = {f"{split}/{name}.txt" for split in LABELLED for name in ("image_ids", "class_labels")}
    assert files_of(spec_of(wsol), PREPROCESSING).keys() == held | all_splits
    list_sizes_and_boxes_of_train(wsol)
    files = files_of(spec_of(wsol), PREPROCESSING)
    assert files.keys() == held | all_splits | {"train/localization.txt", "train/image_sizes.txt"}
    assert files["train/image_sizes.txt"] == wsol / "meta" / "train" / "image_sizes.txt"


def test_folders_of_something_else_are_refused(wsol):
    with pytest.raises(DataError, match=r"held holds none of train, val, test: name the folder that holds wsol"):
        open_data(f"wsol:{wsol / 'images' / 'held'}:{wsol / 'images'}", "train", PREPROCESSING)
    with pytest.raises(DataError, match=r"nowhere is no folder: name the folder that the paths in .*meta begin in"):
        open_data(f"wsol:{wsol / 'meta'}:{wsol / 'nowhere'}", "train", PREPROCESSING)


@pytest.mark.parametrize(("split", "size"), [("trainval", None), ("train", 0)])
def test_what_cannot_be_meant_is_refused(wsol, split, size):
    with pytest.raises(UsageError):
        opened(wsol, split, size)
