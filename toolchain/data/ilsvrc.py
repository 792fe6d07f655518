"""ILSVRC (ImageNet-1k): a folder of training images per class, and one list of the validation images and their boxes.

The list is the one that localization is judged by: 50,000 images with 80,477 boxes. It is not part of the download.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from toolchain.data.image_files import contents_of, read_headers
from toolchain.data.layout import check_root, lists_in, refuse_problems
from toolchain.data.listing import Form, Listing, first_word, listed_twice, nonempty, path_below, read_listing
from toolchain.data.photos import Photo, Photos, check_choice, spread
from toolchain.data.true_boxes import boxes_from_words, unfit_boxes
from toolchain.preprocessing import Box, Preprocessing

TRAIN, VAL, LIST = "train", "val", "val.txt"
NAMES = ("classes.txt", "LOC_synset_mapping.txt")
"""Where class names may stand: the first that is there."""
SUFFIX = ".jpeg"
VAL_EVERY = 10

Labelled = tuple[int, tuple[Box, ...]]
"""Class index and boxes of a listed image."""


class Ilsvrc(Photos):
    """A split of a folder with `train/<wnid>/*.JPEG`, `val/` and the list `val.txt`.

    A line of the list is `path label x0 y0 x1 y1`, more boxes after the first: the path is below `val` (with `val/` in
    front or without), the label an index into the sorted folder names of `train`. Classes are called by these names,
    or as `classes.txt` or `LOC_synset_mapping.txt` says, lines `wnid name`.

    ILSVRC has no images with boxes besides the listed ones. Here every tenth of them is `val`, where tau is chosen, and
    the rest is `test`: results are of 45,000 images, not of 50,000.

    On opening the lists are checked, the class folders, and the header of every listed image. Headers of training
    images are not read: there are 1.28 million.

    Args:
        root: the folder that holds `train`, `val` and `val.txt`.
        split: `train`, `val` or `test`.
        preprocessing: resize and crop; boxes follow both.
        size: number of images, evenly spread over the split; all of them by default.

    Raises:
        UsageError: no such split, or a size under 1.
        DataError: everything found wrong in the folder.
    """

    def __init__(self, root: Path, split: str, preprocessing: Preprocessing, size: int | None = None) -> None:
        check_choice(root, split, size)
        _check_root(root)
        class_names, photos = _read(root, split)
        super().__init__(root, class_names, spread(root, split, photos, size), preprocessing)


def lists_of(root: Path) -> dict[str, Path]:
    """The lists by name. The training images have none: which of them are there, no list says.

    Raises:
        DataError: no such folder, or something missing in it.
    """
    _check_root(root)
    return lists_in(root, [LIST], NAMES, folders=(TRAIN, VAL))


def _check_root(root: Path) -> None:
    check_root(root, (TRAIN, VAL, LIST), "holds ILSVRC's train, val and val.txt")


def _read(root: Path, split: str) -> tuple[list[str], list[Photo]]:
    """Class names, and the images of one split; all of it is checked whatever the split."""
    problems: list[str] = []
    wnids = _wnids(root, problems)
    names = _class_names(root, wnids, problems)
    form = Form("PATH LABEL X0 Y0 X1 Y1 [MORE BOXES] with PATH below val", _path_first, _label_and_boxes)
    listing = read_listing(root, LIST, form, problems)
    problems += listed_twice(LIST, [(line, path) for line, path, _ in listing.rows])
    problems += _unfit_labels(listing, len(wnids))
    problems += _unfit_images(root / VAL, listing)
    refuse_problems(root, problems)

    if split == TRAIN:
        folders = [(label, f"{TRAIN}/{wnid}") for label, wnid in enumerate(wnids)]
        return names, [
            Photo(f"{folder}/{name}", label) for label, folder in folders for name in sorted(_images_in(root / folder))
        ]
    judged = [Photo(f"{VAL}/{path}", label, boxes) for _, path, (label, boxes) in listing.rows]
    val = judged[VAL_EVERY - 1 :: VAL_EVERY]
    del judged[VAL_EVERY - 1 :: VAL_EVERY]
    return names, val if split == VAL else judged


def _path_first(line: str) -> tuple[str, str]:
    path, rest = first_word(line)
    return path_below(path).removeprefix(f"{VAL}/"), rest


def _label_and_boxes(rest: str) -> Labelled:
    label, *numbers = rest.split()
    return int(label), boxes_from_words(numbers)


def _wnids(root: Path, problems: list[str]) -> tuple[str, ...]:
    """The classes in the order of their labels: the sorted names of the training folders."""
    if not (root / TRAIN).is_dir():
        problems.append(f"{TRAIN}: missing.")
        return ()
    wnids = contents_of(root / TRAIN).folders
    if not wnids:
        problems.append(f"{TRAIN}: holds no folders, one for each class.")
    problems += [
        f"{TRAIN}/{wnid}: holds no images (*.JPEG)."
        for wnid in wnids
        if next(_images_in(root / TRAIN / wnid), None) is None
    ]
    return wnids


def _images_in(folder: Path) -> Iterator[str]:
    """Names of the images in a class folder, in the order of the disk."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(SUFFIX) and not entry.name.startswith("."):
                yield entry.name


def _class_names(root: Path, wnids: tuple[str, ...], problems: list[str]) -> list[str]:
    source = next((name for name in NAMES if (root / name).exists()), None)
    if source is None:
        return list(wnids)
    listing = read_listing(root, source, Form("WNID NAME", first_word, nonempty), problems)
    problems += listed_twice(source, [(line, wnid) for line, wnid, _ in listing.rows])
    if listing.readable:
        problems += [f"{TRAIN}/{wnid}: has no line in {source}." for wnid in wnids if wnid not in listing.mentioned]
    names = listing.by_key()
    return [names.get(wnid, wnid) for wnid in wnids]


def _unfit_labels(listing: Listing[str, Labelled], classes: int) -> list[str]:
    """Labels of no class; not to be told without the classes."""
    return [
        f"{LIST}:{line}: label {label} of {path} is out of range: {TRAIN} has {classes} folders, 0 to {classes - 1}."
        for line, path, (label, _) in listing.rows
        if classes and not 0 <= label < classes
    ]


def _unfit_images(folder: Path, listing: Listing[str, Labelled]) -> list[str]:
    """Missing and unreadable image files, and boxes that do not fit their image."""
    if not folder.is_dir():
        return [f"{VAL}: missing."]
    headers = read_headers(folder, [path for _, path, _ in listing.rows])
    problems = []
    for line, path, (_, boxes) in listing.rows:
        if path in headers.faults:
            problems.append(f"{LIST}:{line}: {VAL}/{path} {headers.faults[path]}.")
        else:
            problems += unfit_boxes(f"{LIST}:{line}", path, boxes, headers.sizes[path])
    return problems
