"""Which data set a `--data` option means."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from toolchain.data import cub, folder, ilsvrc, wsol
from toolchain.data.dataset import DataSet
from toolchain.data.shapes import IMAGE_SIZE, PREPROCESSING, Shapes
from toolchain.errors import UsageError
from toolchain.preprocessing import Preprocessing, imagenet

SHAPES = "shapes"


@dataclass(frozen=True)
class Layout:
    """A layout of files on disk.

    Attributes:
        folders: what stands behind the colon, as messages call it.
        open: folders, split, preprocessing and size -> that split.
        lists: folders -> the list files of the data set, by name.
    """

    folders: tuple[str, ...]
    open: Callable[..., DataSet]
    lists: Callable[..., dict[str, Path]]


LAYOUTS = {
    "cub": Layout(("DIR",), cub.Cub, cub.lists_of),
    "ilsvrc": Layout(("DIR",), ilsvrc.Ilsvrc, ilsvrc.lists_of),
    "wsol": Layout(("METADATA_DIR", "IMAGES_DIR"), wsol.Wsol, wsol.lists_of),
    "folder": Layout(("DIR",), folder.Folder, folder.lists_of),
}
FORMS = ", ".join([SHAPES, *(":".join([kind, *layout.folders]) for kind, layout in LAYOUTS.items())])


def open_data(spec: str, split: str, preprocessing: Preprocessing, size: int | None = None) -> DataSet:
    """The split of a data set that `spec` names.

    Args:
        spec: `shapes`, or a layout of `LAYOUTS` and the folders it is found in, with colons between them; only the last
            folder may have a colon in its name.
        split: `train`, `val` or `test`.
        preprocessing: of the model that will see the images.
        size: number of images, all by default; the first ones of `shapes`, evenly spread ones of a folder.

    Raises:
        UsageError: a spec, split or size that cannot be meant, or a data set that does not fit the model.
        DataError: the folder cannot be used; lists every problem found in it.
    """
    if spec == SHAPES:
        if preprocessing.image_size != IMAGE_SIZE:
            raise UsageError(
                f"data set 'shapes' is drawn at {IMAGE_SIZE} pixels and the model sees {preprocessing.image_size}: "
                f"choose a model of {IMAGE_SIZE} pixels, such as lctr-nano, or other data."
            )
        return Shapes(split, size)
    layout, folders = _located(spec)
    return layout.open(*folders, split, preprocessing, size)


def files_of(spec: str, preprocessing: Preprocessing) -> dict[str, Path]:
    """The lists that decide the content of a data set, role -> file; checks what can be checked at a glance.

    What no list says is not among them: which images are in the class folders of `ilsvrc` and `folder`, and what is in
    any image. Whoever changes those has to have the results made anew.

    Raises:
        UsageError, DataError: as `open_data` does.
    """
    if spec == SHAPES:
        open_data(spec, "test", preprocessing)
        return {}
    layout, folders = _located(spec)
    return layout.lists(*folders)


def preprocessing_for(spec: str, image_size: int) -> Preprocessing:
    """What a new model trained on `spec` does with images.

    ImageNet's for anything on disk; `shapes` is drawn at its size already and
    has a normalization of its own.
    """
    if spec == SHAPES:
        return PREPROCESSING
    return imagenet(image_size)


def _located(spec: str) -> tuple[Layout, list[Path]]:
    """The layout and the folders that a spec names."""
    kind, _, place = spec.partition(":")
    layout = LAYOUTS.get(kind)
    if layout is not None:
        places = place.split(":", len(layout.folders) - 1)
        if all(places) and len(places) == len(layout.folders):
            return layout, [_expanded(name) for name in places]
    raise UsageError(f"unknown data set '{spec}': use one of {FORMS}.")


def _expanded(name: str) -> Path:
    """The folder of this name; a shell does not expand `~` behind a colon."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{name} begins with the home of nobody: write the folder out.") from error
