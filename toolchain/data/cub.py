"""CUB-200-2011 as unpacked, and any data set laid out like it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

from PIL import Image, UnidentifiedImageError

from toolchain.data.dataset import SPLITS, Sample
from toolchain.errors import DataError, UsageError
from toolchain.preprocessing import Box, Preprocessing, read_image

FOLDER = "CUB_200_2011"
VAL_EVERY = 8

# File -> what a line of it looks like. Ids are integers and begin at 1 by custom only.
LINES = {
    "classes.txt": "CLASS_ID NAME",
    "images.txt": "IMAGE_ID PATH",
    "image_class_labels.txt": "IMAGE_ID CLASS_ID",
    "train_test_split.txt": "IMAGE_ID 1|0",
    "bounding_boxes.txt": "IMAGE_ID X Y WIDTH HEIGHT",
}

# CUB counts its first pixel as 0 in some boxes and as 1 in others: a box may end this far outside of its image.
PIXELS_BEYOND = 1.0

Value = TypeVar("Value")


@dataclass(frozen=True)
class Entry(Generic[Value]):
    """What one line of a list says, and which line that is, counted from 1."""

    line: int
    value: Value


@dataclass(frozen=True)
class Listing(Generic[Value]):
    """One of the lists, read.

    Attributes:
        entries: id -> entry, of the lines that could be read.
        mentioned: every id in the list, that of malformed lines included.
        readable: there is such a file, and it is text; nothing can be compared with a list that is not.
    """

    entries: dict[int, Entry[Value]]
    mentioned: frozenset[int]
    readable: bool = True


@dataclass(frozen=True)
class Photo:
    """An image on disk.

    Attributes:
        path: below the folder `images`.
        label: class index.
        box: pixels of the image on disk.
    """

    path: str
    label: int
    box: Box


class Cub:
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
        if split not in SPLITS:
            raise UsageError(f"unknown split '{split}' of {root}: choose one of {', '.join(SPLITS)}.")
        if size is not None and size < 1:
            raise UsageError(f"{size} images of {root} asked for: ask for at least 1.")
        folder = _folder(root)
        self.class_names, splits = _read(folder)
        self._images = folder / "images"
        self._preprocessing = preprocessing
        self._photos = _spread(splits[split], size)
        if not self._photos:
            raise DataError(f"{folder} has no images in its split '{split}': choose another split or complete it.")

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self._photos):
            raise IndexError(index)
        photo = self._photos[index]
        image = read_image(self._images / photo.path)
        box = self._preprocessing.crop_box(photo.box, image.size)
        return Sample(self._preprocessing.crop(image), photo.label, (box,), photo.path)


def lists_of(root: Path) -> dict[str, Path]:
    """The five lists by name: what the data set consists of, without a look at its images.

    Raises:
        DataError: no such folder, or a list is missing.
    """
    folder = _folder(root)
    missing = [name for name in LINES if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder} cannot be used: complete it.", [f"{name}: is missing." for name in missing])
    return {name: folder / name for name in LINES}


def _folder(root: Path) -> Path:
    for folder in (root, root / FOLDER):
        if any((folder / name).exists() for name in LINES):
            return folder
    if not root.is_dir():
        raise DataError(f"{root} is no folder: name the folder that CUB-200-2011 was unpacked to.")
    raise DataError(f"{root} holds none of {', '.join(LINES)}: name the folder that CUB-200-2011 was unpacked to.")


def _read(folder: Path) -> tuple[tuple[str, ...], dict[str, list[Photo]]]:
    """Class names, and the images of each split."""
    problems: list[str] = []
    classes = _listing(folder, "classes.txt", _text, problems)
    paths = _listing(folder, "images.txt", _path, problems)
    labels = _listing(folder, "image_class_labels.txt", int, problems)
    roles = _listing(folder, "train_test_split.txt", _role, problems)
    boxes = _listing(folder, "bounding_boxes.txt", _corner_box, problems)

    problems += _listed_twice(paths)
    problems += _unmatched("image_class_labels.txt", labels, paths)
    problems += _unmatched("train_test_split.txt", roles, paths)
    problems += _unmatched("bounding_boxes.txt", boxes, paths)
    problems += _unmatched_classes(classes, labels)
    problems += _unfit_images(folder / "images", paths, boxes)
    if problems:
        found = "one thing" if len(problems) == 1 else f"{len(problems)} things"
        raise DataError(f"{folder} cannot be used as it is: mend {found} in it.", problems)

    order = {class_id: index for index, class_id in enumerate(sorted(classes.entries))}
    names = tuple(classes.entries[class_id].value.removeprefix(f"{class_id:03d}.") for class_id in order)
    splits: dict[str, list[Photo]] = {split: [] for split in SPLITS}
    trained = [0] * len(names)
    for image_id, path in paths.entries.items():
        label = order[labels.entries[image_id].value]
        split = roles.entries[image_id].value
        if split == "train":
            trained[label] += 1
            split = "val" if trained[label] % VAL_EVERY == 0 else "train"
        splits[split].append(Photo(path.value, label, boxes.entries[image_id].value))
    return names, splits


def _spread(photos: Sequence[Photo], size: int | None) -> list[Photo]:
    count = min(size or len(photos), len(photos))
    return [photos[k * len(photos) // count] for k in range(count)]


def _listing(folder: Path, name: str, parse: Callable[[str], Value], problems: list[str]) -> Listing[Value]:
    """The lines of a list by id; what is wrong with them is added to `problems`."""
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        problems.append(f"{name}: missing.")
        return Listing({}, frozenset(), readable=False)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{name}: cannot be read as text ({error}).")
        return Listing({}, frozenset(), readable=False)
    entries: dict[int, Entry[Value]] = {}
    mentioned: set[int] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        first, _, rest = line.strip().partition(" ")
        try:
            key = int(first)
            repeated = key in mentioned
            mentioned.add(key)
            value = parse(rest)
        except ValueError:
            problems.append(f"{name}:{number}: '{line}' is not of the form {LINES[name]}.")
            continue
        if repeated:
            problems.append(f"{name}:{number}: id {key} is listed a second time.")
        else:
            entries[key] = Entry(number, value)
    return Listing(entries, frozenset(mentioned))


def _text(rest: str) -> str:
    if not rest.strip():
        raise ValueError
    return rest.strip()


def _path(rest: str) -> str:
    path = PurePosixPath(_text(rest))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError  # a data set has no business outside of its folder
    return str(path)


def _role(rest: str) -> str:
    try:
        return {"1": "train", "0": "test"}[rest.strip()]
    except KeyError as error:
        raise ValueError from error


def _corner_box(rest: str) -> Box:
    x, y, width, height = (float(v) for v in rest.split())
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError
    return x, y, x + width, y + height


def _listed_twice(paths: Listing[str]) -> list[str]:
    first: dict[str, int] = {}
    problems = []
    for entry in paths.entries.values():
        if entry.value in first:
            problems.append(
                f"images.txt:{entry.line}: {entry.value} is listed a second time (first in line {first[entry.value]})."
            )
        first.setdefault(entry.value, entry.line)
    return problems


def _unmatched(name: str, listing: Listing[Any], paths: Listing[str]) -> list[str]:
    """Images without an entry in another list, and entries there of images that do not exist."""
    if not (listing.readable and paths.readable):
        return []
    missing = [
        f"images.txt:{entry.line}: image {image_id} ({entry.value}) has no line in {name}."
        for image_id, entry in paths.entries.items()
        if image_id not in listing.mentioned
    ]
    unknown = [
        f"{name}:{entry.line}: image {image_id} is not in images.txt."
        for image_id, entry in listing.entries.items()
        if image_id not in paths.mentioned
    ]
    return missing + unknown


def _unmatched_classes(classes: Listing[str], labels: Listing[int]) -> list[str]:
    """Labels of no class, and classes of no label."""
    if not (classes.readable and labels.readable):
        return []
    unknown = [
        f"image_class_labels.txt:{entry.line}: class {entry.value} is not in classes.txt."
        for entry in labels.entries.values()
        if entry.value not in classes.mentioned
    ]
    used = {entry.value for entry in labels.entries.values()}
    empty = [
        f"classes.txt:{entry.line}: class {class_id} ({entry.value}) has no images."
        for class_id, entry in classes.entries.items()
        if class_id not in used
    ]
    return unknown + empty


def _unfit_images(images: Path, paths: Listing[str], boxes: Listing[Box]) -> list[str]:
    """Missing and unreadable image files, and boxes that do not fit their image."""
    if not images.is_dir():
        return ["images: missing."]
    problems = []
    for image_id, path in paths.entries.items():
        try:
            # Opening reads the header alone.
            with Image.open(images / path.value) as image:
                size = image.size
        except FileNotFoundError:
            problems.append(f"images.txt:{path.line}: images/{path.value} is missing.")
            continue
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            problems.append(f"images.txt:{path.line}: images/{path.value} is no readable image ({error}).")
            continue
        if image_id in boxes.entries:
            problems += _unfit_box(boxes.entries[image_id], size, path.value)
    return problems


def _unfit_box(entry: Entry[Box], size: tuple[int, int], name: str) -> list[str]:
    x0, y0, x1, y1 = entry.value
    where = f"bounding_boxes.txt:{entry.line}: the box {x0:g} {y0:g} {x1 - x0:g} {y1 - y0:g} of {name}"
    if x1 <= x0 or y1 <= y0:
        return [f"{where} is empty."]
    if min(x0, y0) < -PIXELS_BEYOND or x1 > size[0] + PIXELS_BEYOND or y1 > size[1] + PIXELS_BEYOND:
        return [f"{where} reaches out of its image of {size[0]} x {size[1]} pixels."]
    return []
