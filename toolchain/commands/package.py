"""`lctr package`."""

from __future__ import annotations

from pathlib import Path

import click

from toolchain.commands.answers import say_made
from toolchain.commands.options import PATH, output_option, require_absent


@click.command(short_help="Package a file for those who do not have lctr.")
@click.argument("file", type=PATH)
@click.option("--format", "format_", required=True, metavar="NAME", help="triton or folder.")
@output_option("Folder to write.")
@click.option("--name", help="Of the model in Triton. Default: after FILE.")
@click.option("--max-batch", type=int, help="Largest batch. Default: what the engine was built for; 32 for ONNX.")
@click.option("--instances", default=1, show_default=True, help="Copies of the model that run at a time.")
@click.option("--queue-delay", default="100us", show_default=True, help="How long a request waits to be batched.")
@click.option("--device", help="gpu or cpu. Default: gpu for TensorRT, cpu for ONNX.")
def package(
    file: Path,
    format_: str,
    output: Path,
    name: str | None,
    max_batch: int | None,
    instances: int,
    queue_delay: str,
    device: str | None,
) -> None:
    """Package FILE (.onnx or an engine) for those who do not have lctr.

    triton: a model repository for Triton Inference Server, with a client. folder: the file with its preprocessing, its
    class names, and a short program that runs it. Both tell in a README.md how to use them.
    """
    if format_ != "triton":
        require_absent(f"--format {format_}", "name", "max_batch", "instances", "queue_delay", "device")
    from toolchain.packaging.package import package
    from toolchain.packaging.triton import TritonOptions, microseconds

    options = TritonOptions(name, max_batch, instances, microseconds(queue_delay), device)
    say_made(package(file, format_, output, options))
