"""Whether synthetic images remember training images: how near the nearest one is, and the nearest held-out one.

    python benchmarks/privacy.py -o docs/benchmarks/privacy.json
    for seed in 0 1 2 3 4; do
      lctr synthesize .photos/finetuned.safetensors --count 64 --seed $seed -o synthetic-$seed; done
    python benchmarks/privacy.py --photos .photos --images synthetic-* --count 64 -o docs/benchmarks/privacy-photos.json

The first takes the bundled localizer and `shapes`, the second what `make finetuned` made. Training images and as many
held-out ones, which nothing was made from, are compared as `nearness.py` says. Where there are more training images
than held-out ones, they are cut into parts of equal size, which are compared one after the other.

Two distances. Pixels: both images at 32 x 32, brought to mean 0 and deviation 1, so that brightness and contrast do not
hide a likeness; root mean square of the difference, of the image or its mirror image. Features: mean patch token at the
last LayerNorm, which is what the statistics are made of, less its mean over all real images; cosine distance.

Beside the synthetic images two other sets are asked about. *Unseen* are real images of the validation split: what no
memory looks like. *Copies* are training images, moved by a few pixels and covered with noise: what memory looks like.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from nearness import Nearness, Vectors, nearness
from numpy.typing import NDArray
from photographs import Photographs
from record import markdown, written

from calib import image_set
from calib.moments import image_moments
from calib.observation import frozen, observing
from calib.tokens import token_view
from toolchain import stages
from toolchain.data.sources import open_data
from toolchain.pipeline import BUNDLED
from toolchain.requests import Request
from toolchain.teachers import KnownTeacher, localizer_teacher

Images = NDArray[np.uint8]
SIDE = 32
"""Of the images whose pixels are compared."""
DRAWN = 4000
"""Training and held-out images of `shapes`, which has as many as one likes; its statistics saw these training ones."""
BATCH = 16
SHIFT, NOISE = 1 / 32, 20.0
"""Of a copy: of its side, and standard deviation in levels of 255."""
REMEMBERS = 0.01
"""Below this p, chance is no explanation any more."""


@dataclass(frozen=True)
class Seen:
    """Images as they are compared.

    Attributes:
        pixels: (N, 3 * 32 * 32), each of length 1.
        features: (N, D).
    """

    pixels: Vectors
    features: Vectors

    def part(self, rows: slice) -> "Seen":
        """Some of them."""
        return Seen(self.pixels[rows], self.features[rows])


@dataclass(frozen=True)
class Split:
    """Real images.

    Attributes:
        images: (N, S, S, 3).
        labels: (N,).
    """

    images: Images
    labels: NDArray[np.int64]

    def spread(self, count: int) -> Images:
        """So many images, evenly spread over all; all of them where there are fewer."""
        return self.images[:: max(1, len(self.images) // count)][:count]


@dataclass(frozen=True)
class Asked:
    """Images whose nearest ones are looked for.

    Attributes:
        images: as they are.
        mirrored: the same, mirrored.
    """

    images: Seen
    mirrored: Seen

    def pixel_distances(self, others: Seen) -> Vectors:
        """(N, M)."""
        alike = np.maximum(self.images.pixels @ others.pixels.T, self.mirrored.pixels @ others.pixels.T)
        distances: Vectors = np.sqrt(np.maximum(2 - 2 * alike, 0))
        return distances

    def feature_distances(self, others: Seen, mean: Vectors) -> Vectors:
        """(N, M); `mean` (D,) becomes the origin."""
        there = _unit(others.features - mean)
        alike = [_unit(side.features - mean) @ there.T for side in (self.images, self.mirrored)]
        distances: Vectors = 1 - np.maximum(*alike)
        return distances


def main() -> None:
    """Measure, write the record, print a table."""
    options = _options()
    known, data = subject(options.photos)
    with tempfile.TemporaryDirectory() as folder:
        folders = options.images or [_synthesized(known, Path(folder) / "synthetic", options.count)]
        sets = [image_set.read(f, known.window.image_size, known.window.crop, limit=options.count) for f in folders]
    found = np.concatenate(sets)
    record: dict[str, Any] = {
        "model": Path(known.name).name,
        "data": data.partition(":")[0],
        "synthetic": len(found),
        "noise_levels": NOISE,
    }
    record |= _compared(known, found, real_images(known, data))
    written(record, options.output)
    print(_table(record["parts"]))
    remembering = [part for part in record["parts"] if part["images"] == "synthetic" and part["p"] < REMEMBERS]
    print(f"\nSynthetic images nearer to training images than chance explains: {'yes' if remembering else 'no'}.")


def subject(photos: Path | None) -> tuple[KnownTeacher, str]:
    """The localizer and its data set: what `make finetuned` made in a folder, or the bundled one."""
    if photos is None:
        return localizer_teacher(BUNDLED), "shapes"
    known = Photographs(photos)
    return localizer_teacher(known.localizer), known.data


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="What `make finetuned` made, in place of shapes.")
    parser.add_argument(
        "--images", type=Path, nargs="+", metavar="DIR", help="Synthetic images of the model. Default: make them."
    )
    parser.add_argument("--count", type=int, default=256, help="Of synthetic images, at most; of each DIR.")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _synthesized(known: KnownTeacher, folder: Path, count: int) -> Path:
    print(f"Synthesizing {count} images.", file=sys.stderr)
    return stages.synthetic(known, known.statistics, folder, Request(count)).artifact.path


def real_images(known: KnownTeacher, data: str) -> dict[str, Split]:
    """Training, held-out and unseen images by their split's name."""
    drawn = {"train": DRAWN, "test": DRAWN} if data == "shapes" else {}
    found = {}
    for name in ("train", "test", "val"):
        split = open_data(data, name, known.window, drawn.get(name))
        samples = [split[index] for index in range(len(split))]
        labels = np.array([sample.label for sample in samples])
        found[name] = Split(np.stack([sample.image for sample in samples]), labels)
    return found


def _compared(known: KnownTeacher, synthetic: Images, real: dict[str, Split]) -> dict[str, Any]:
    training, held_out = seen(known, real["train"].images, "training"), seen(known, real["test"].images, "held-out")
    unseen, copies = real["val"].spread(len(synthetic)), _copies(real["train"].spread(len(synthetic)))
    asked = {
        name: Asked(seen(known, images, name), seen(known, images[:, :, ::-1], f"{name}, mirrored"))
        for name, images in (("synthetic", synthetic), ("unseen", unseen), ("copies", copies))
    }
    mean = np.concatenate([training.features, held_out.features]).mean(0)
    count = -(-len(training.pixels) // len(held_out.pixels))
    size = min(len(training.pixels) // count, len(held_out.pixels))
    others = held_out.part(slice(size))
    parts = []
    for number in range(count):
        own = training.part(slice(number, number + count * size, count))
        for name, images in asked.items():
            spaces = {
                "pixels": nearness(images.pixel_distances(own), images.pixel_distances(others)),
                "features": nearness(images.feature_distances(own, mean), images.feature_distances(others, mean)),
            }
            parts += [_row(number + 1, space, name, found) for space, found in spaces.items()]
    return {"training": len(training.pixels), "set_size": size, "parts": parts}


def _row(part: int, space: str, images: str, found: Nearness) -> dict[str, Any]:
    measured = found.as_dict()
    return {"part": part, "space": space, "images": images, "count": measured.pop("images"), **measured}


def seen(known: KnownTeacher, images: Images, name: str) -> Seen:
    """Images (N, S, S, 3) as they are compared; `name` tells the user which."""
    print(f"Looking at {len(images)} images: {name}.", file=sys.stderr)
    teacher, view = known.teacher, token_view(known.view.layers[-1:])
    pixels, features = [], []
    with frozen(teacher.model), torch.inference_mode(), observing(teacher.model, view) as observation:
        for some in _batches(images):
            teacher.logits(teacher.normalized(some))
            features.append(image_moments(observation.take()[0]).mean.cpu().numpy())
            pixels.append(_standardized(some))
    return Seen(np.concatenate(pixels), np.concatenate(features))


def _batches(images: Images) -> Iterator[Images]:
    """Some images at a time, (B, S, S, 3)."""
    rows: Iterable[Images] = iter(images)
    while some := [*islice(rows, BATCH)]:
        yield np.stack(some)


def _standardized(images: Images) -> Vectors:
    """Small, of mean 0 and length 1: (B, 3 * 32 * 32)."""
    small = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in images])
    flat = small.reshape(len(images), -1).astype(np.float32)
    return _unit(flat - flat.mean(1, keepdims=True))


def _copies(images: Images) -> Images:
    """The same again, moved and covered with noise."""
    moved = np.roll(images, round(SHIFT * images.shape[1]), axis=(1, 2)).astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(moved.shape, np.float32) * NOISE
    return (moved + noise).clip(0, 255).astype(np.uint8)


def _unit(vectors: Vectors) -> Vectors:
    units: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return units


def _table(parts: Sequence[dict[str, Any]]) -> str:
    columns = ("images, distance, part", "count", "to training", "to held-out", "nearer to training", "by chance", "p")
    rows = []
    for part in parts:
        near, far = (f"{part[side]['median']:.3f} ({part[side]['percentile_1']:.3f})" for side in ("first", "second"))
        share = f"{part['share']:.1%} ({part['interval'][0]:.1%} to {part['interval'][1]:.1%})"
        chance = f"{part['chance'][0]:.1%} to {part['chance'][1]:.1%}"
        name = f"{part['images']}, {part['space']}, {part['part']}"
        rows.append([name, str(part["count"]), near, far, share, chance, f"{part['p']:.2g}"])
    return markdown(columns, rows)


if __name__ == "__main__":
    main()
