"""Data sets by the metadata of wsolevaluation: CUB and ILSVRC, with a validation split of their own to choose tau on.

Choe et al. 2020, "Evaluating weakly supervised object localization methods right".
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from toolchain.data.dataset import SPLITS
from toolchain.data.image_files import MISSING, missing_files, read_headers
from toolchain.data.layout import check_root, lists_in, refuse_problems
from toolchain.data.listing import Form, Listing, listed_twice, path_below, read_listing, unknown_to, without_line
from toolchain.data.photos import Photo, Photos, check_choice, spread
from toolchain.data.true_boxes import Size, boxes_from_words, unfit_boxes
from toolchain.errors import DataError
from toolchain.preprocessing import Box, Preprocessing

IDS, LABELS, BOXES, SIZES = "image_ids.txt", "class_labels.txt", "localization.txt", "image_sizes.txt"
WITHOUT_BOXES = "train"
"""The split whose boxes and sizes need not be known."""
SHOWN = 5
"""Labels without an image that are named, of which there may be any number."""


@dataclass(frozen=True)
class SplitLists:
    """The lists of a split; None: it has no such list, and need not have.

    Attributes:
        split: its name.
        ids: the images.
        labels: class index of each.
        boxes: one box a line.
        sizes: of the images on disk.
    """

    split: str
    ids: Listing[str, None]
    labels: Listing[str, int]
    boxes: Listing[str, Box] | None
    sizes: Listing[str, Size] | None


class Wsol(Photos):
    """A split of the images that wsolevaluation's metadata describe.

    The metadata are `{train,val,test}/` with `image_ids.txt` (`path`), `class_labels.txt` (`path,label`),
    `localization.txt` (`path,x0,y0,x1,y1`, a line for each box) and `image_sizes.txt` (`path,width,height`). The last
    two may be missing for `train`, where an image may also be without boxes. Boxes given as masks (OpenImages) are not
    understood.

    Classes are numbered from 0 by the labels of `train`. Each is called by the folder that all its training images lie
    in and no other class's do; by its number where there is no such folder. Where two names would be the same, all
    classes are called by their numbers.

    On opening all lists are compared with one another and the folder of images is searched for every image; only
    training images that have a box and no line in `image_sizes.txt` are opened.

    Args:
        metadata: the folder that holds `train`, `val` and `test`.
        images: the folder that the paths in the lists begin in.
        split: `train`, `val` or `test`.
        preprocessing: resize and crop; boxes follow both.
        size: number of images, evenly spread over the split; all of them by default.

    Raises:
        UsageError: no such split, or a size under 1.
        DataError: everything found wrong in the lists and among the images.
    """

    def __init__(
        self, metadata: Path, images: Path, split: str, preprocessing: Preprocessing, size: int | None = None
    ) -> None:
        check_choice(metadata, split, size)
        _check_roots(metadata, images)
        class_names, photos = _read(metadata, images, split)
        super().__init__(images, class_names, spread(metadata, split, photos, size), preprocessing)


def lists_of(metadata: Path, images: Path) -> dict[str, Path]:
    """The lists by name, with their split in front.

    Raises:
        DataError: no such folders, or a list is missing.
    """
    _check_roots(metadata, images)
    optional = [f"{WITHOUT_BOXES}/{name}" for name in (BOXES, SIZES)]
    names = [f"{split}/{name}" for split in SPLITS for name in (IDS, LABELS, BOXES, SIZES)]
    return lists_in(metadata, [name for name in names if name not in optional], optional)


def _check_roots(metadata: Path, images: Path) -> None:
    check_root(metadata, SPLITS, "holds wsolevaluation's metadata of one data set")
    if not images.is_dir():
        raise DataError(f"{images} is no folder: name the folder that the paths in {metadata} begin in.")


def _read(metadata: Path, images: Path, split: str) -> tuple[list[str], list[Photo]]:
    """Class names, and the images of one split; all of it is checked whatever the split."""
    problems: list[str] = []
    splits = {name: _lists(metadata, name, problems) for name in SPLITS}
    for lists in splits.values():
        problems += _unmatched(lists)
    problems += _shared_images(splits)
    problems += _unfit_labels(splits)
    for lists in splits.values():
        problems += _unfit_images(lists, images)
    refuse_problems(metadata, problems)

    chosen = splits[split]
    boxes: defaultdict[str, list[Box]] = defaultdict(list)
    for _, path, box in chosen.boxes.rows if chosen.boxes else ():
        boxes[path].append(box)
    label_of = chosen.labels.by_key()
    photos = [Photo(path, label_of[path], tuple(boxes.get(path, ()))) for _, path, _ in chosen.ids.rows]
    return _class_names(splits["train"].labels.by_key()), photos


def _lists(metadata: Path, split: str, problems: list[str]) -> SplitLists:
    there = (metadata / split).is_dir()
    if not there:
        problems.append(f"{split}: missing.")
    # Of the lists in a missing folder there is nothing left to say.
    found = problems if there else []

    def read(name: str, form: Form[str, Any]) -> Listing[str, Any]:
        return read_listing(metadata, f"{split}/{name}", form, found)

    def read_if_known(name: str, form: Form[str, Any]) -> Listing[str, Any] | None:
        needless = split == WITHOUT_BOXES and not (metadata / split / name).exists()
        return None if needless else read(name, form)

    return SplitLists(
        split,
        ids=read(IDS, Form("PATH below the folder of images", _before(0), lambda rest: None)),
        labels=read(LABELS, Form("PATH,LABEL", _before(1), int)),
        boxes=read_if_known(BOXES, Form("PATH,X0,Y0,X1,Y1", _before(4), _box)),
        sizes=read_if_known(SIZES, Form("PATH,WIDTH,HEIGHT", _before(2), _size)),
    )


def _before(values: int) -> Callable[[str], tuple[str, str]]:
    """Path and values of a line; what is left of the values is the path, which may hold commas."""

    def split(line: str) -> tuple[str, str]:
        path, *rest = line.rsplit(",", values)
        return path_below(path), ",".join(rest)

    return split


def _box(rest: str) -> Box:
    (box,) = boxes_from_words(rest.split(","))
    return box


def _size(rest: str) -> Size:
    width, height = (int(word) for word in rest.split(","))
    if min(width, height) < 1:
        raise ValueError
    return width, height


def _unmatched(lists: SplitLists) -> list[str]:
    """Images listed twice, without a line where they need one, and lines of images that are not in the split."""
    once: list[Listing[str, Any]] = [lists.ids, lists.labels, *([lists.sizes] if lists.sizes else [])]
    problems = []
    for listing in once:
        problems += listed_twice(listing.name, [(line, path) for line, path, _ in listing.rows])
    for listing in once[1:]:
        problems += without_line(lists.ids, listing) + unknown_to(lists.ids, listing)
    if lists.boxes:
        needed = lists.split != WITHOUT_BOXES
        problems += (without_line(lists.ids, lists.boxes) if needed else []) + unknown_to(lists.ids, lists.boxes)
    return problems


def _shared_images(splits: Mapping[str, SplitLists]) -> list[str]:
    """Images of two splits: a result on images that the model was trained on, or tau chosen on, would be none."""
    owner: dict[str, str] = {}
    problems = []
    for lists in splits.values():
        problems += [
            f"{lists.ids.name}:{line}: {path} is in {owner[path]} too: an image belongs to one split."
            for line, path, _ in lists.ids.rows
            if path in owner
        ]
        owner |= {path: lists.ids.name for _, path, _ in lists.ids.rows}
    return problems


def _unfit_labels(splits: Mapping[str, SplitLists]) -> list[str]:
    """Training labels that are no indices, and labels elsewhere that no training image has."""
    train = splits["train"].labels
    if not train.readable:
        return []
    known = {label for _, _, label in train.rows}
    problems = [
        f"{train.name}:{line}: label {label} of {path} is negative: classes are numbered from 0."
        for line, path, label in train.rows
        if label < 0
    ]
    largest = max(known, default=0)
    absent = [*islice((n for n in range(largest) if n not in known), SHOWN + 1)]
    if absent:
        shown = ", ".join(map(str, absent[:SHOWN])) + (" and more" if len(absent) > SHOWN else "")
        problems.append(f"{train.name}: labels reach {largest}, but no image has {shown}: number classes without gaps.")
    for lists in splits.values():
        if lists.split != "train":
            problems += [
                f"{lists.labels.name}:{line}: label {label} of {path} is that of no training image."
                for line, path, label in lists.labels.rows
                if label not in known
            ]
    return problems


def _unfit_images(lists: SplitLists, images: Path) -> list[str]:
    """Missing images, and boxes that do not fit the size that the list gives, or without a list the header."""
    boxes = lists.boxes.rows if lists.boxes else []
    missing = missing_files(images, (path for _, path, _ in lists.ids.rows))
    told = tuple(f"{folder}/" for folder in missing.folders)
    unsized = set() if lists.sizes else {path for _, path, _ in boxes} & lists.ids.mentioned
    headers = read_headers(images, [path for path in sorted(unsized) if not path.startswith(told)])
    faults = headers.faults | dict.fromkeys(missing.files, MISSING)
    sizes = lists.sizes.by_key() if lists.sizes else headers.sizes
    problems = [
        f"{lists.ids.name}: {images / folder}, the folder of {number} of its images, is missing."
        for folder, number in missing.folders.items()
    ]
    problems += [
        f"{lists.ids.name}:{line}: {images / path} {faults[path]}."
        for line, path, _ in lists.ids.rows
        if path in faults
    ]
    for line, path, box in boxes:
        if path in sizes:
            problems += unfit_boxes(f"{lists.split}/{BOXES}:{line}", path, [box], sizes[path])
    return problems


def _class_names(label_of: Mapping[str, int]) -> list[str]:
    """By class index, from the labels of the training images."""
    folders: defaultdict[int, set[str]] = defaultdict(set)
    classes: defaultdict[str, set[int]] = defaultdict(set)
    for path, label in label_of.items():
        folder = path.rpartition("/")[0]
        folders[label].add(folder)
        classes[folder].add(label)
    names = []
    for label in range(len(folders)):
        first, *others = folders[label]
        own = first and not others and len(classes[first]) == 1
        names.append(first.rpartition("/")[2] if own else str(label))
    return names if len(set(names)) == len(names) else [str(label) for label in range(len(names))]
