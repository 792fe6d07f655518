"""CUB-200-2011 as unpacked, and any data set laid out like it."""

from collections import Counter
from pathlib import Path
from typing import Any

from toolchain.data.dataset import SPLITS
from toolchain.data.image_files import read_headers
from toolchain.data.layout import check_root, lists_in, refuse_problems
from toolchain.data.listing import (
    Form,
    Listing,
    first_word,
    listed_twice,
    nonempty,
    path_below,
    read_listing,
    repeats,
    unknown_to,
    without_line,
)
from toolchain.data.photos import Photo, Photos, check_choice, spread
from toolchain.data.true_boxes import fault_of_box, finite
from toolchain.preprocessing import Box, Preprocessing

FOLDER = "CUB_200_2011"
VAL_EVERY = 8
CLASSES, IMAGES, LABELS, ROLES, BOXES = LISTS = (
    "classes.txt",
    "images.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
)


class Cub(Photos):
    """A split of a folder in CUB-200-2011's layout.

    CUB has no validation split. Here `val` is every eighth training image of each class, in the order of `images.txt`,
    and `train` is the rest: tau is chosen on `val`, and `test` is left for the result.

    The five lists and the header of every image are checked on opening; pixels are decoded when an image is asked for.

    Args:
        root: the folder that holds `images.txt`, or the one above it.
        split: `train`, `val` or `test`.
        preprocessing: resize and crop; boxes follow both.
        size: number of images, evenly spread over the split and so over its classes; all of them by default.

    Raises:
        UsageError: no such split, or a size under 1.
        DataError: everything found wrong in the folder.
    """

    def __init__(self, root: Path, split: str, preprocessing: Preprocessing, size: int | None = None) -> None:
        check_choice(root, split, size)
        folder = _folder(root)
        class_names, splits = _read(folder)
        super().__init__(folder / "images", class_names, spread(folder, split, splits[split], size), preprocessing)


def lists_of(root: Path) -> dict[str, Path]:
    """The five lists by name: what the data set consists of, without a look at its images.

    Raises:
        DataError: no such folder, or a list is missing.
    """
    return lists_in(_folder(root), LISTS)


def _folder(root: Path) -> Path:
    holders = [folder for folder in (root, root / FOLDER) if any((folder / name).exists() for name in LISTS)]
    folder = holders[0] if holders else root
    check_root(folder, LISTS, "CUB-200-2011 was unpacked to")
    return folder


def _read(folder: Path) -> tuple[tuple[str, ...], dict[str, list[Photo]]]:
    """Class names, and the images of each split. Ids are integers and begin at 1 by custom only."""
    problems: list[str] = []
    classes = read_listing(folder, CLASSES, Form("CLASS_ID NAME", _by_id, nonempty), problems)
    paths = read_listing(folder, IMAGES, Form("IMAGE_ID PATH", _by_id, path_below), problems)
    labels = read_listing(folder, LABELS, Form("IMAGE_ID CLASS_ID", _by_id, int), problems)
    roles = read_listing(folder, ROLES, Form("IMAGE_ID 1|0", _by_id, _role), problems)
    boxes = read_listing(folder, BOXES, Form("IMAGE_ID X Y WIDTH HEIGHT", _by_id, _corner_box), problems)

    problems += _repeated_ids(classes, paths, labels, roles, boxes)
    problems += listed_twice(IMAGES, [(line, path) for line, _, path in paths.rows])
    problems += _unmatched_images(paths, labels, roles, boxes)
    problems += _unmatched_classes(classes, labels)
    problems += _unfit_images(folder, paths, boxes)
    refuse_problems(folder, problems)

    names, label_of, role_of, box_of = classes.by_key(), labels.by_key(), roles.by_key(), boxes.by_key()
    order = {class_id: index for index, class_id in enumerate(sorted(names))}
    splits: dict[str, list[Photo]] = {split: [] for split in SPLITS}
    trained: Counter[int] = Counter()
    for image_id, path in paths.by_key().items():
        label, split = order[label_of[image_id]], role_of[image_id]
        if split == "train":
            trained[label] += 1
            split = "val" if trained[label] % VAL_EVERY == 0 else "train"
        splits[split].append(Photo(path, label, (box_of[image_id],)))
    return tuple(names[class_id].removeprefix(f"{class_id:03d}.") for class_id in order), splits


def _by_id(line: str) -> tuple[int, str]:
    first, rest = first_word(line)
    return int(first), rest


def _role(rest: str) -> str:
    try:
        return {"1": "train", "0": "test"}[rest]
    except KeyError as error:
        raise ValueError from error


def _corner_box(rest: str) -> Box:
    x, y, width, height = (finite(word) for word in rest.split())
    return x, y, x + width, y + height


def _repeated_ids(*listings: Listing[int, Any]) -> list[str]:
    return [
        f"{listing.name}:{line}: id {key} is listed a second time."
        for listing in listings
        for line, key, _ in repeats((line, key) for line, key, _ in listing.rows)
    ]


def _unmatched_images(paths: Listing[int, str], *others: Listing[int, Any]) -> list[str]:
    """Images without a line in another list, and lines there of images that do not exist."""
    known = paths.by_key()

    def called(image_id: int) -> str:
        return f"image {image_id} ({known[image_id]})" if image_id in known else f"image {image_id}"

    problems = []
    for other in others:
        problems += without_line(paths, other, called)
        problems += unknown_to(paths, other, called)
    return problems


def _unmatched_classes(classes: Listing[int, str], labels: Listing[int, int]) -> list[str]:
    """Labels of no class, and classes of no label."""
    if not (classes.readable and labels.readable):
        return []
    unknown = [
        f"{LABELS}:{line}: class {class_id} is not in {CLASSES}."
        for line, _, class_id in labels.rows
        if class_id not in classes.mentioned
    ]
    used = {class_id for _, _, class_id in labels.rows}
    empty = [
        f"{CLASSES}:{line}: class {class_id} ({name}) has no images."
        for line, class_id, name in classes.rows
        if class_id not in used
    ]
    return unknown + empty


def _unfit_images(folder: Path, paths: Listing[int, str], boxes: Listing[int, Box]) -> list[str]:
    """Missing and unreadable image files, and boxes that do not fit their image."""
    if not (folder / "images").is_dir():
        return ["images: missing."]
    headers = read_headers(folder / "images", [path for _, _, path in paths.rows])
    problems = [
        f"{IMAGES}:{line}: images/{path} {headers.faults[path]}."
        for line, _, path in paths.rows
        if path in headers.faults
    ]
    path_of = paths.by_key()
    for line, image_id, (x0, y0, x1, y1) in boxes.rows:
        path = path_of.get(image_id, "")
        fault = fault_of_box((x0, y0, x1, y1), headers.sizes[path]) if path in headers.sizes else None
        if fault:
            problems.append(f"{BOXES}:{line}: the box {x0:g} {y0:g} {x1 - x0:g} {y1 - y0:g} of {path} {fault}.")
    return problems
