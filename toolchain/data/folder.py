"""Anybody's images: a folder per split, in it a folder per class, and perhaps a list of boxes."""

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

from toolchain.data.dataset import SPLITS
from toolchain.data.image_files import contents_of, read_headers
from toolchain.data.layout import check_root, lists_in, refuse_problems
from toolchain.data.listing import Form, Listing, listed_twice, path_below, read_listing
from toolchain.data.photos import Photo, Photos, check_choice, spread
from toolchain.data.true_boxes import boxes_from_words, unfit_boxes
from toolchain.preprocessing import Box, Preprocessing

BOXES = "boxes.txt"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")

Classes = dict[str, list[str]]
"""Class -> paths of its images, of one split, in order of their names."""


class Folder(Photos):
    """A split of a folder with `{train,val,test}/<class>/` and the images of each class in it.

    Classes are the sorted folder names, the same in every split. Images are told by their suffix in upper or lower
    case (jpg, jpeg, png, bmp, webp, gif, tif, tiff, ppm); other files are left alone, and so are names that begin with
    a dot.

    Boxes stand in `boxes.txt`, where there is one. A line is `path x0 y0 x1 y1`, more boxes after the first: all
    numbers at its end belong to boxes, and what is before them is the path, which begins with the split and may hold
    spaces. In `val` and `test` all images have boxes or none has; in `train` any may, and nobody looks at them.

    On opening the folders are compared, and the headers of the images with boxes are read; other images are opened when
    they are asked for.

    Args:
        root: the folder that holds `train`, `val` and `test`.
        split: `train`, `val` or `test`.
        preprocessing: resize and crop; boxes follow both.
        size: number of images, evenly spread over the split and so over its classes; all of them by default.

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
    """The list of boxes, where there is one. Which images there are, no list says.

    Raises:
        DataError: no such folder, or a split is missing.
    """
    _check_root(root)
    return lists_in(root, optional=[BOXES], folders=SPLITS)


def _check_root(root: Path) -> None:
    check_root(root, SPLITS, "holds the folders train, val and test")


def _read(root: Path, split: str) -> tuple[tuple[str, ...], list[Photo]]:
    """Class names, and the images of one split; all of it is checked whatever the split."""
    problems: list[str] = []
    splits = {name: _classes(root, name, problems) for name in SPLITS}
    problems += _differences(splits)
    boxes: dict[str, tuple[Box, ...]] = {}
    if (root / BOXES).exists():
        form = Form("PATH X0 Y0 X1 Y1 [MORE BOXES] with PATH below the data set's folder", _path_and_boxes, _boxes)
        listing = read_listing(root, BOXES, form, problems)
        problems += _unfit_list(root, splits, listing)
        boxes = listing.by_key()
    refuse_problems(root, problems)

    classes = splits[split]
    labelled = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
    return tuple(classes), [Photo(path, label, boxes.get(path, ())) for path, label in labelled]


def _classes(root: Path, split: str, problems: list[str]) -> Classes:
    if not (root / split).is_dir():
        problems.append(f"{split}: missing.")
        return {}
    classes: Classes = {}
    for name in contents_of(root / split).folders:
        found = contents_of(root / split / name)
        images = [file for file in found.files if file.lower().endswith(SUFFIXES)]
        classes[name] = [f"{split}/{name}/{image}" for image in images]
        if not images:
            problems.append(f"{split}/{name}: holds no images ({', '.join(suffix[1:] for suffix in SUFFIXES)}).")
        problems += [
            f"{split}/{name}/{inner}: is a folder in a class: put its images into {split}/{name}."
            for inner in found.folders
        ]
    if not classes:
        problems.append(f"{split}: holds no folders, one for each class.")
    return classes


def _differences(splits: Mapping[str, Classes]) -> list[str]:
    """Classes that one split has and another, not empty itself, has not."""
    filled = {split: classes for split, classes in splits.items() if classes}
    owner = {name: split for split, classes in reversed(filled.items()) for name in classes}
    return [
        f"{split}/{name}: missing, and {owner[name]} has this class: all splits need the same classes."
        for split, classes in filled.items()
        for name in sorted(owner)
        if name not in classes
    ]


def _path_and_boxes(line: str) -> tuple[str, str]:
    numbers = len([*takewhile(_is_number, reversed(line.split()))])
    path, *rest = line.rsplit(maxsplit=numbers) if numbers else [line]
    return path_below(path), " ".join(rest)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _boxes(rest: str) -> tuple[Box, ...]:
    return boxes_from_words(rest.split())


def _unfit_list(root: Path, splits: Mapping[str, Classes], listing: Listing[str, tuple[Box, ...]]) -> list[str]:
    """Lines of no image, boxes that do not fit their image, and images left out."""
    images = {split: [path for paths in classes.values() for path in paths] for split, classes in splits.items()}
    known = {path for paths in images.values() for path in paths}
    problems = listed_twice(BOXES, [(line, path) for line, path, _ in listing.rows])
    headers = read_headers(root, sorted(known & listing.mentioned))
    for line, path, boxes in listing.rows:
        if path not in known:
            problems.append(f"{BOXES}:{line}: there is no image {path}: correct the path or remove the line.")
        elif path in headers.faults:
            problems.append(f"{BOXES}:{line}: {path} {headers.faults[path]}.")
        else:
            problems += unfit_boxes(f"{BOXES}:{line}", path, boxes, headers.sizes[path])
    for split in ("val", "test"):
        left_out = [path for path in images[split] if path not in listing.mentioned]
        if len(left_out) < len(images[split]):
            problems += [f"{path}: has no line in {BOXES}, and other images of {split} have one." for path in left_out]
    return problems
