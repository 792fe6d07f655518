"""Which data set a `--data` option means."""

from pathlib import Path

from toolchain.data.cub import Cub, lists_of
from toolchain.data.dataset import DataSet
from toolchain.data.shapes import IMAGE_SIZE, PREPROCESSING, Shapes
from toolchain.errors import UsageError
from toolchain.preprocessing import Preprocessing

FORMS = "shapes, cub:DIR"


def open_data(spec: str, split: str, preprocessing: Preprocessing, size: int | None = None) -> DataSet:
    """The split of a data set that `spec` names.

    Args:
        spec: `shapes`, or `cub:DIR` for a folder in CUB-200-2011's layout.
        split: `train`, `val` or `test`.
        preprocessing: of the model that will see the images.
        size: number of images, all by default; the first ones of `shapes`, evenly spread ones of a folder.

    Raises:
        UsageError: a spec, split or size that cannot be meant, or a data set that does not fit the model.
        DataError: the folder cannot be used; lists every problem found in it.
    """
    kind, _, place = spec.partition(":")
    if spec == "shapes":
        if preprocessing.image_size != IMAGE_SIZE:
            raise UsageError(
                f"data set 'shapes' is drawn at {IMAGE_SIZE} pixels and the model sees {preprocessing.image_size}: "
                f"choose a model of {IMAGE_SIZE} pixels, such as lctr-nano, or other data."
            )
        return Shapes(split, size)
    if kind == "cub" and place:
        return Cub(Path(place).expanduser(), split, preprocessing, size)
    raise UsageError(f"unknown data set '{spec}': use one of {FORMS}.")


def files_of(spec: str, preprocessing: Preprocessing) -> dict[str, Path]:
    """What decides the content of a data set, role -> file; checks what can be checked without reading an image.

    Raises:
        UsageError, DataError: as `open_data` does.
    """
    if spec.startswith("cub:") and len(spec) > len("cub:"):
        return lists_of(Path(spec.removeprefix("cub:")).expanduser())
    open_data(spec, "test", preprocessing)
    return {}


def preprocessing_for(spec: str, image_size: int) -> Preprocessing:
    """What a new model trained on `spec` does with images.

    Short side to 8/7 of the input, centre crop, ImageNet's normalization; `shapes` is drawn at its size already and
    has a normalization of its own.
    """
    if spec == "shapes":
        return PREPROCESSING
    return Preprocessing(image_size, image_size * 8 // 7, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
