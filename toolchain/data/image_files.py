"""Image files on disk: which ones are there and how large they are, without decoding any."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from toolchain.data.true_boxes import Size

THREADS = 16
"""Reading a header is waiting for the disk, so more threads than cores pay."""
BLOCK = 256
"""Headers per task of a thread."""
MISSING = "is missing"
"""What is wrong with a file that is not there, as the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class Contents:
    """Names in a folder, sorted, without those that begin with a dot."""

    folders: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Headers:
    """What the headers of image files say.

    Attributes:
        sizes: path -> size, of the images that can be opened.
        faults: path -> what is wrong with the file, as the end of a sentence that begins with its name.
    """

    sizes: dict[str, Size]
    faults: dict[str, str]


@dataclass(frozen=True)
class Missing:
    """Files that are not there.

    Attributes:
        files: missing from a folder that is there.
        folders: missing folder -> number of files looked for in it or below it.
    """

    files: frozenset[str]
    folders: dict[str, int]


def contents_of(folder: Path) -> Contents:
    """The names in a folder; a link counts as what it leads to."""
    with os.scandir(folder) as entries:
        visible = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    return Contents(
        tuple(name for name, is_folder in visible if is_folder),
        tuple(name for name, is_folder in visible if not is_folder),
    )


def read_headers(folder: Path, paths: Sequence[str]) -> Headers:
    """Sizes of the images at `paths` below `folder`, read by threads."""
    # Pillow registers its rarer formats when it first fails on a file, and another thread that fails on such a file at
    # that moment takes it for no image: registered beforehand, none can.
    Image.init()
    blocks = [paths[start : start + BLOCK] for start in range(0, len(paths), BLOCK)]
    headers = Headers({}, {})
    with ThreadPoolExecutor(THREADS) as threads:
        for block in threads.map(lambda some: [(path, _header(folder / path)) for path in some], blocks):
            for path, found in block:
                if isinstance(found, str):
                    headers.faults[path] = found
                else:
                    headers.sizes[path] = found
    return headers


def missing_files(folder: Path, paths: Iterable[str]) -> Missing:
    """Which of the files at `paths` below `folder` are not there: each folder is listed once, no file is touched."""
    names: defaultdict[str, list[str]] = defaultdict(list)
    for path in paths:
        parent, _, name = path.rpartition("/")
        names[parent].append(name)
    files: set[str] = set()
    folders: Counter[str] = Counter()
    for parent, wanted in names.items():
        if not (folder / parent).is_dir():
            folders[_first_missing(folder, parent)] += len(wanted)
            continue
        with os.scandir(folder / parent) as entries:
            present = {entry.name for entry in entries}
        files.update(f"{parent}/{name}" if parent else name for name in wanted if name not in present)
    return Missing(frozenset(files), dict(folders))


def _first_missing(folder: Path, below: str) -> str:
    """The uppermost folder on the way to `below` that is not there."""
    ways = accumulate(below.split("/"), "{}/{}".format)
    return next(way for way in ways if not (folder / way).is_dir())


def _header(file: Path) -> Size | str:
    try:
        # Opening reads the header alone.
        with Image.open(file) as image:
            return image.size
    except FileNotFoundError:
        return MISSING
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"is no readable image ({error})"
