"""The `lctr` command line: its commands, and how errors leave it."""

import os
import sys
from typing import Any

import click

from toolchain import __version__
from toolchain.commands.benchmark import benchmark
from toolchain.commands.build import build
from toolchain.commands.deploy import deploy
from toolchain.commands.doctor import doctor
from toolchain.commands.evaluate import evaluate
from toolchain.commands.export import export
from toolchain.commands.finetune import finetune
from toolchain.commands.import_checkpoint import import_
from toolchain.commands.inspect import inspect
from toolchain.commands.localize import localize
from toolchain.commands.package import package
from toolchain.commands.quantize import quantize
from toolchain.commands.statistics import statistics
from toolchain.commands.synthesize import synthesize
from toolchain.commands.train import train
from toolchain.commands.verify import verify
from toolchain.errors import LctrError

TRAINING_STACK = {
    *("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "polygraphy", "matplotlib", "jinja2"),
    *("lightning_fabric", "kornia", "tensorboardX"),
}
"""What a base install does not have."""


class _Commands(click.Group):
    """Commands in the order of a deployment, and errors as one sentence with the exit code of their kind."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except LctrError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in TRAINING_STACK:
                raise
            extra = "train" if ctx.invoked_subcommand == "train" else "compile"
            click.echo(f"Error: this command needs {package}, which is not installed: install lctr[{extra}].", err=True)
            ctx.exit(1)
        except BrokenPipeError:
            # The reader (`| head`) has seen enough; what is left in the buffer has nowhere to go.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            reason = f"{error.filename or 'a file'} cannot be used ({error.strerror or error})"
            click.echo(f"Error: {reason}: check path, rights and space.", err=True)
            ctx.exit(1)


_ORDERED = (
    deploy,
    train,
    import_,
    statistics,
    synthesize,
    export,
    quantize,
    finetune,
    build,
    inspect,
    evaluate,
    benchmark,
    localize,
    package,
    verify,
    doctor,
)
"""As a deployment goes."""


@click.group(
    cls=_Commands, commands=_ORDERED, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="lctr")
def main() -> None:
    """From a vision transformer in PyTorch to an INT8 TensorRT engine, calibrated without real images.

    `lctr deploy` does everything, step by step and resumable; each step is a command of its own:

    \b
      train or import -> statistics -> synthesize -> export -> quantize -> build -> inspect, benchmark, evaluate

    Every result stands beside a sidecar NAME.json that says what it was made from. Exit codes: 0 done; 1 failed, with
    the reason; 2 wrong usage; 3 a bound (--max-drop, --max-p99, ...) did not hold.
    """  # noqa: D301 - a raw one would print the mark that keeps the lines apart


if __name__ == "__main__":
    main()
