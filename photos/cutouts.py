"""Photographs of 40 animals with exact boxes, in CUB-200-2011's layout, put together from Tux Paint's stamps.

A stamp is a photograph cut out along the animal. Each image shows one labelled animal, mirrored, turned, scaled and
tinted at random, in front of coloured noise and of up to four unlabelled things (plants, food, tools, vehicles). So the
pixels are a camera's, and the boxes are known to the pixel. Every image has its own random stream: the result depends
neither on the number of processes nor on their order.

    python photos/cutouts.py STAMPS OUT    # STAMPS: usr/share/tuxpaint/stamps of the unpacked Debian package
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from toolchain.artifacts import writing
from toolchain.errors import DataError, LctrError

SPECIES, TRAIN, TEST = 40, 40, 20
SIZE = 256
SEED = 0
JPEG_QUALITY = 92

ANIMALS = ("animals",)
DISTRACTORS = ("plants", "food", "household", "vehicles", "sports", "hobbies", "clothes")
DRAWN = {"cartoon", "toys", "plastic"}
"""Folders of stamps that are no photographs of the thing they name."""

OPAQUE = 128
"""Pixels of a higher alpha belong to the thing; the others are its soft rim."""

LEAST_PIXELS = 3000
"""A stamp with fewer opaque pixels is too coarse to be scaled up."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels, end exclusive."""


@dataclass(frozen=True)
class Stamp:
    """A photograph cut out along its subject: an RGBA picture, cropped to the opaque part."""

    name: str
    picture: Image.Image


@dataclass(frozen=True)
class Studio:
    """Everything that images are composed of; sent once to each process."""

    animals: tuple[Stamp, ...]
    distractors: tuple[Stamp, ...]
    images: Path

    def boxes(self, label: int) -> list[Box]:
        """Compose and save every image of one animal, and return its box in each."""
        animal = self.animals[label]
        found = []
        for index in range(TRAIN + TEST):
            image, box = compose(np.random.default_rng([SEED, label, index]), animal, self.distractors)
            image.save(self.images / image_path(label, animal.name, index), quality=JPEG_QUALITY)
            found.append(box)
        return found


def stamps(root: Path, folders: Sequence[str], every: int = 1) -> Iterator[Stamp]:
    """The photographic stamps of some folders, in name order, large enough ones only.

    Args:
        root: folder of the stamps.
        folders: below `root`.
        every: take each second, third, ... file: neighbours by name often show the same animal.
    """
    files = sorted(f for folder in folders for f in (root / folder).rglob("*.png") if not DRAWN & set(f.parts))
    for file in files[::every]:
        picture = Image.open(file).convert("RGBA")
        if opaque(picture).sum() >= LEAST_PIXELS:
            yield Stamp(file.stem, picture.crop(opaque_box(picture)))


def opaque(picture: Image.Image) -> NDArray[np.bool_]:
    """(h, w): which pixels of an RGBA picture belong to its subject."""
    return np.asarray(picture)[..., 3] > OPAQUE


def opaque_box(picture: Image.Image) -> Box:
    """The smallest box around the subject of an RGBA picture."""
    rows, columns = np.nonzero(opaque(picture))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def compose(rng: np.random.Generator, animal: Stamp, distractors: Sequence[Stamp]) -> tuple[Image.Image, Box]:
    """One image (RGB, SIZE x SIZE) and the box of the animal, which nothing covers."""
    image = noise(rng)
    for _ in range(rng.integers(0, 5)):
        paste(rng, image, distractors[int(rng.integers(len(distractors)))], 0.1, 0.35)
    return image, paste(rng, image, animal, 0.25, 0.8)


def noise(rng: np.random.Generator) -> Image.Image:
    """Coloured noise whose power falls with frequency as in photographs: 1/f^a, a random, around a random colour."""
    frequency = np.fft.fftfreq(SIZE)[:, None] ** 2 + np.fft.rfftfreq(SIZE)[None] ** 2
    frequency[0, 0] = 1
    falloff = frequency ** rng.uniform(0.4, 1.0)

    def field() -> NDArray[np.float64]:
        spectrum = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
        waves = np.fft.irfft2(spectrum / falloff, s=(SIZE, SIZE))
        return np.asarray(waves / waves.std())

    colour = rng.random(3) * 160 + 40
    brightness = field()
    channels = [mean + 30 * brightness + 15 * field() for mean in colour]
    return Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8))


def paste(rng: np.random.Generator, image: Image.Image, stamp: Stamp, least: float, most: float) -> Box:
    """Put a stamp somewhere on the image, mirrored, turned, scaled and tinted at random.

    Args:
        rng: source of all that is random.
        image: changed in place.
        stamp: what to put there.
        least: smallest longer side, as a fraction of the image's.
        most: largest longer side.

    Returns:
        the box of the stamp's subject in the image.
    """
    picture = stamp.picture
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-25, 25), expand=True, resample=Image.Resampling.BILINEAR)
    scale = rng.uniform(least, most) * SIZE / max(picture.size)
    width, height = (max(8, int(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)

    pixels = np.asarray(picture).astype(np.float64)
    contrast, tint = rng.uniform(0.6, 1.2), rng.uniform(-40, 40, 3)
    pixels[..., :3] = np.clip((pixels[..., :3] - 128) * contrast + 128 + tint, 0, 255)
    picture = Image.fromarray(pixels.astype(np.uint8))

    left, top = (int(rng.integers(0, SIZE - side + 1)) for side in picture.size)
    image.paste(picture, (left, top), picture)
    x0, y0, x1, y1 = opaque_box(picture)
    return left + x0, top + y0, left + x1, top + y1


def image_path(label: int, name: str, index: int) -> str:
    """Where an image stands below `images`."""
    return f"{class_folder(label, name)}/{name}_{index:04d}.jpg"


def class_folder(label: int, name: str) -> str:
    """CUB's name of a class and of its folder."""
    return f"{label + 1:03d}.{name}"


def cub_from_stamps(root: Path, out: Path) -> int:
    """Write the data set to the folder `out`, whole or not at all.

    Returns:
        the number of images.

    Raises:
        DataError: `root` does not hold the stamps.
        ArtifactError: `out` cannot be written.
    """
    animals = tuple(stamps(root, ANIMALS, every=2))[:SPECIES]
    distractors = tuple(stamps(root, DISTRACTORS))
    if len(animals) < SPECIES or not distractors:
        raise DataError(
            f"{root} holds {len(animals)} usable stamps of animals and {len(distractors)} of other things, and "
            f"{SPECIES} and at least 1 are needed: name the folder 'stamps' of Debian's tuxpaint-stamps-default."
        )
    with writing(out, folder=True) as temporary:
        studio = Studio(animals, distractors, temporary / "images")
        for label, animal in enumerate(animals):
            (studio.images / class_folder(label, animal.name)).mkdir(parents=True)
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=_enter, initargs=(studio,)) as workers:
            boxes = list(workers.map(_boxes, range(SPECIES)))
        write_lists(temporary, [animal.name for animal in animals], boxes)
    return SPECIES * (TRAIN + TEST)


def write_lists(folder: Path, names: Sequence[str], boxes: Sequence[Sequence[Box]]) -> None:
    """Write CUB's five lists for the images of each class, in order: the first TRAIN of a class are for training."""
    images: list[str] = []
    labels: list[str] = []
    roles: list[str] = []
    corners: list[str] = []
    for label, (name, of_class) in enumerate(zip(names, boxes, strict=True)):
        for index, (x0, y0, x1, y1) in enumerate(of_class):
            number = len(images) + 1
            images.append(f"{number} {image_path(label, name, index)}")
            labels.append(f"{number} {label + 1}")
            roles.append(f"{number} {int(index < TRAIN)}")
            corners.append(f"{number} {x0:.1f} {y0:.1f} {x1 - x0:.1f} {y1 - y0:.1f}")
    lists = {
        "classes.txt": [f"{label + 1} {class_folder(label, name)}" for label, name in enumerate(names)],
        "images.txt": images,
        "image_class_labels.txt": labels,
        "train_test_split.txt": roles,
        "bounding_boxes.txt": corners,
    }
    for file, lines in lists.items():
        (folder / file).write_text("\n".join(lines) + "\n")


_studio: Studio


def _enter(studio: Studio) -> None:
    global _studio
    _studio = studio


def _boxes(label: int) -> list[Box]:
    return _studio.boxes(label)


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stamps", type=Path, help="folder 'stamps' of Debian's tuxpaint-stamps-default, unpacked")
    parser.add_argument("out", type=Path, help="folder to write, such as CUB_200_2011")
    arguments = parser.parse_args()
    try:
        count = cub_from_stamps(arguments.stamps, arguments.out)
    except LctrError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{arguments.out}: {count} images of {SPECIES} animals.\n")


if __name__ == "__main__":
    main()
