"""Folders of calibration images: the synthetic set as an artifact, anybody's folder, and noise.

A synthetic set is a folder of PNG files and nothing else, so that it reads like any other folder of images. What is
*about* the set stands beside the folder: `NAME.json` (sidecar), `NAME.preview.png`, and `NAME.losses.png` where
something was trained.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from toolchain import artifacts
from toolchain.artifacts import Artifact
from toolchain.errors import DataError, UsageError

if TYPE_CHECKING:
    # Its module needs torch; whoever reads a folder of images does not.
    from calib.synthesis import SyntheticImages

KIND = "synthetic"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
PREVIEW_IMAGES = 64
SMOOTHED_STEPS = 10
"""Steps at the end of the training that a final loss is the mean of: one step sees one class."""


def preview_of(path: Path) -> Path:
    """Where the preview of the synthetic set at `path` stands."""
    return path.with_name(path.name + ".preview.png")


def losses_plot_of(path: Path) -> Path:
    """Where the loss curves of the synthetic set at `path` stand."""
    return path.with_name(path.name + ".losses.png")


def write(
    synthetic: "SyntheticImages",
    path: Path,
    class_names: Sequence[str],
    *,
    parameters: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Path] | None = None,
    code: str = "",
) -> Artifact:
    """Write a synthetic set: the folder, its sidecar, a preview and the loss curves.

    Args:
        synthetic: what `synthesize` returned.
        path: of the folder; files become `0000_classname.png`, or `0000.png` where images are of no class.
        class_names: by class index.
        parameters: of the command, its seed among them, recorded.
        inputs: role -> file the images were made from (model, statistics), recorded by hash.
        code: version of the code, recorded.

    Raises:
        ArtifactError: the place cannot be written to.
    """
    labels = None if synthetic.labels is None else synthetic.labels.tolist()
    with artifacts.writing(path, folder=True) as folder:
        for index, image in enumerate(synthetic.images):
            suffix = "" if labels is None else "_" + _file_name(class_names[labels[index]])
            Image.fromarray(image).save(folder / f"{index:04d}{suffix}.png")
    with artifacts.writing(preview_of(path)) as temporary:
        Image.fromarray(grid(synthetic.images[:PREVIEW_IMAGES])).save(temporary, "PNG")
    losses_plot_of(path).unlink(missing_ok=True)
    if synthetic.losses:
        with artifacts.writing(losses_plot_of(path)) as temporary:
            _plot(synthetic.losses, temporary)
    return artifacts.seal(
        path,
        KIND,
        parameters=parameters,
        inputs=inputs,
        metadata={
            "labels": labels,
            "class_names": list(class_names),
            "final_losses": final_losses(synthetic.losses),
            "agreement": synthetic.agreement,
            "deviation_ratio": dict(synthetic.deviation_ratio),
            "missing": list(synthetic.missing),
        },
        code=code,
    )


def listed(path: Path, limit: int | None = None) -> list[Path]:
    """The image files in a folder, subfolders included, in name order.

    Args:
        path: any folder of images.
        limit: at most so many, taken at even distances: in a folder with one subfolder per class, from all of them.

    Raises:
        DataError: no folder, or no image in it.
        UsageError: a limit under 1.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}: take at least 1 image.")
    if not path.is_dir():
        raise DataError(f"{path} is no folder: give a folder of images.")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds no image ({', '.join(SUFFIXES)}): give a folder of images.")
    if limit is not None and limit < len(files):
        files = [files[index * len(files) // limit] for index in range(limit)]
    return files


def stream(
    path: Path, size: int, crop: Callable[[Image.Image], NDArray[np.uint8]], *, limit: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Images for calibration from a folder, one at a time, in the order of `listed`.

    Args:
        path: a synthetic set, which is checked against its sidecar and taken as it is, or any folder of images.
        size: of the network's input, S.
        crop: brings an RGB image of any size to (S, S, 3) uint8; not used on a synthetic set.
        limit: as for `listed`.

    Yields:
        (S, S, 3) uint8 RGB.

    Raises:
        ArtifactError: a synthetic set that was changed.
        DataError: as `listed`; a synthetic set of another size; at the end also for images that cannot be read (all of
            them are named).
        UsageError: a limit under 1.
    """
    files = listed(path, limit)
    synthetic = is_synthetic(path)
    prepare = np.asarray if synthetic else crop
    problems = []
    for file in files:
        try:
            with Image.open(file) as image:
                prepared = prepare(image.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            problems.append(f"{file}: {error}")
            continue
        if synthetic and prepared.shape != (size, size, 3):
            raise DataError(
                f"{path} holds images of {prepared.shape[1]} x {prepared.shape[0]} pixels and the network takes "
                f"{size} x {size}: synthesize them for this network."
            )
        # After the first bad one the others are only looked at, so that the user learns of all of them at once.
        if not problems:
            yield prepared
    if problems:
        raise DataError(f"{len(problems)} of {len(files)} images cannot be read: replace or remove them.", problems)


def read(
    path: Path, size: int, crop: Callable[[Image.Image], NDArray[np.uint8]], *, limit: int | None = None
) -> NDArray[np.uint8]:
    """All images of `stream` at once: (count, S, S, 3) uint8 RGB."""
    return np.stack([*stream(path, size, crop, limit=limit)])


def noise(count: int, size: int, seed: int) -> NDArray[np.float32]:
    """The rival that FDDA must beat: standard-normal images (count, 3, size, size) in the normalized space.

    No pixels and no crop: most values lie where no image can be.
    """
    return _normal(np.random.default_rng(seed), count, size)


def noise_batches(count: int, size: int, seed: int, batch: int) -> Iterator[NDArray[np.float32]]:
    """The images of `noise`, `batch` at a time; the same ones whatever the batch."""
    random = np.random.default_rng(seed)
    for start in range(0, count, batch):
        yield _normal(random, min(batch, count - start), size)


def grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (count, S, S, 3) side by side in rows, as square as it gets, on white: (H, W, 3)."""
    count, side = len(images), images.shape[1]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * side, index % columns * side
        sheet[top : top + side, left : left + side] = image
    return sheet


def final_losses(losses: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Mean of each term over the last steps."""
    return {name: float(np.mean(values[-SMOOTHED_STEPS:])) for name, values in losses.items()}


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "_" for c in name)


def _normal(random: np.random.Generator, count: int, size: int) -> NDArray[np.float32]:
    return random.standard_normal((count, 3, size, size), np.float32)


def is_synthetic(path: Path) -> bool:
    """Whether `path` is one of our sets; anybody's folder has no sidecar.

    Raises:
        ArtifactError: it is one, and was changed.
    """
    if not artifacts.sidecar_of(path).exists() or artifacts.read_sidecar(path).kind != KIND:
        return False
    artifacts.load(path, KIND)
    return True


def _plot(losses: Mapping[str, Sequence[float]], path: Path) -> None:
    # Late, because it takes a second: most commands never plot. And no pyplot: it would look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    # An entropy that is maximized is a negative loss, which has no logarithm.
    scale = "log" if min(map(min, losses.values())) > 0 else "linear"
    axes = figure.add_subplot(xlabel="step", ylabel="loss", yscale=scale)
    for name, values in losses.items():
        axes.plot(range(1, 1 + len(values)), values, label=name, linewidth=1)
    axes.legend()
    figure.savefig(path, format="png", dpi=120)
