"""`lctr localize`."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.commands import terminal
from toolchain.commands.answers import print_json
from toolchain.commands.options import PATH


@click.command(short_help="Find the object in images.")
@click.argument("file")
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("-o", "--output", type=PATH, help="Folder to write overlays to, one PNG per image.")
def localize(file: str, images: tuple[Path, ...], output: Path | None) -> None:
    """Find the object in each of IMAGES with FILE (.safetensors, .onnx or an engine); prints JSON.

    FILE@BACKEND opens it in the backend of that name, as for `lctr evaluate`. Boxes are x0, y0, x1, y1 in pixels of the
    image.
    """
    import numpy as np

    from engines.registry import file_and_backend
    from toolchain.localizer import localize, open_localizer
    from toolchain.overlay import localized, png_bytes
    from toolchain.preprocessing import read_image

    pictures = [(path, read_image(path)) for path in images]
    found = []
    with open_localizer(*file_and_backend(file)) as localizer, terminal.steps() as step:
        progress = step("localize")
        for done, (path, picture) in enumerate(pictures, 1):
            result = localize(localizer, picture)
            record = {"image": str(path), **result.as_dict()}
            if output:
                drawn = localized(np.asarray(picture), result.window, result.map, result.box)
                record["overlay"] = str(_write_overlay(png_bytes(drawn), output, path))
            found.append(record)
            progress(done, len(pictures))
    print_json(found)


def _write_overlay(png: bytes, folder: Path, image: Path) -> Path:
    from toolchain.artifacts import writing

    target = folder / f"{image.stem}.localized.png"
    with writing(target) as temporary:
        temporary.write_bytes(png)
    return target
