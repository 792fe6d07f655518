"""Options that several commands share, and what is refused before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from toolchain.errors import UsageError

if TYPE_CHECKING:
    from toolchain.calibration import Stated
PATH = click.Path(path_type=Path)
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def together(*options: Decorator) -> Decorator:
    """Several options as one, in the order of the help."""

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorated


def data_option(default: str | None = "shapes") -> Decorator:
    """`--data`; without a default it is required."""
    return click.option(
        "--data",
        default=default,
        required=default is None,
        show_default=default is not None,
        metavar="SPEC",
        help="Data set: `shapes` (built in), `cub:DIR`, `ilsvrc:DIR`, `wsol:METADATA_DIR:IMAGES_DIR` or `folder:DIR`.",
    )


def output_option(what: str, default: str | None = None) -> Decorator:
    """`--output`; without a default it is required."""
    return click.option(
        "-o", "--output", type=PATH, required=default is None, default=default, show_default=bool(default), help=what
    )


seed_option = click.option("--seed", default=0, show_default=True, help="The same seed gives the same result.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
target_option = click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="smXX",
    help="tensorrt-rtx: GPU architecture such as sm89; may be repeated. Default: what the builder calls portable.",
)
method_option = click.option(
    "--method",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="How a tensor's range is chosen: auto, entropy, percentile, mse or max.",
)


guide_options = together(
    click.option(
        "--guide",
        metavar="FILE|MODULE:FACTORY",
        help="A network in MODEL's place: NAME.guide.safetensors of `lctr train --guide`, or a "
        "package.module:factory that returns any classifier. This imports and runs that module's code.",
    ),
    click.option("--num-classes", type=int, help="Of a factory's network, where no MODEL says it, as all below."),
    click.option("--image-size", type=int, metavar="PIXELS", help="Side of its input."),
    click.option("--mean", nargs=3, type=float, metavar="R G B", help="Its normalization, of pixels in [0, 1]."),
    click.option("--std", nargs=3, type=float, metavar="R G B", help="Likewise."),
)
"""What names a guide; `toolchain.teachers` says what goes together."""


def input_stated(
    mean: tuple[float, float, float] | None, std: tuple[float, float, float] | None, image_size: int | None
) -> Stated:
    """What the options say of a network's input."""
    from toolchain.calibration import Stated

    return Stated(mean, std, image_size)


def require_suffix(path: Path, suffix: str) -> None:
    """Refuse a file of another kind.

    Raises:
        UsageError: `path` does not end in `suffix`.
    """
    if path.suffix != suffix:
        raise UsageError(f"{path} does not end in {suffix}: name a {suffix} file.")


def require_absent(option: str, *others: str) -> None:
    """Refuse options that `option` leaves without a meaning.

    Raises:
        UsageError: one of `others` was given; names of parameters, not of options.
    """
    context = click.get_current_context()
    for name in others:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{option} and --{name.replace('_', '-')} contradict each other: leave one out.")
