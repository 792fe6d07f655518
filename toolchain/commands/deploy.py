"""`lctr deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolchain.commands import terminal
from toolchain.commands.answers import fields, print_json, say_aside
from toolchain.commands.options import (
    PATH,
    data_option,
    json_option,
    method_option,
    output_option,
    seed_option,
    target_option,
)

if TYPE_CHECKING:
    from toolchain.findings import Stage


@click.command(short_help="Take a checkpoint to an INT8 engine and a report.")
@click.argument("checkpoint", type=PATH, required=False)
@data_option()
@output_option("Folder of all results.", "lctr-deploy")
@click.option("--count", default=512, show_default=True, help="Synthetic calibration images.")
@click.option("--steps", default=150, show_default=True, help="Training steps of the generator.")
@click.option("--test-images", type=int, help="Held-out images to evaluate on. Default: all.")
@method_option
@target_option
@seed_option
@json_option
def deploy(
    checkpoint: Path | None,
    data: str,
    output: Path,
    count: int,
    steps: int,
    test_images: int | None,
    method: str,
    targets: tuple[str, ...],
    seed: int,
    as_json: bool,
) -> None:
    """Take CHECKPOINT to an INT8 engine and a report; without one, the localizer that ships with lctr.

    Needs the checkpoint's statistics beside it (`lctr train` writes them). Real images are read after the engine is
    finished, to evaluate it and to compare. A second run reuses everything that did not change.
    """
    from toolchain.pipeline import BUNDLED, Plan, deploy

    plan = Plan(
        data=data,
        calibration_images=count,
        steps=steps,
        seed=seed,
        method=method,
        targets=targets,
        test_images=test_images,
    )
    with terminal.steps() as step:
        done = deploy(checkpoint or BUNDLED, output, plan, step=step, ended=_say_stage)
    from toolchain.report import verdict

    judged = verdict(done.findings)
    if as_json:
        print_json(
            {
                "report": str(done.report),
                "holds": judged.holds,
                "headline": judged.headline,
                "arms": [
                    {"name": a.name, "evaluation": fields(a.evaluation), "error": fields(a.error)}
                    for a in done.findings.arms
                ],
                "latency": done.findings.latency,
                "counts": {name: found["counts"] for name, found in done.findings.inspections.items()},
                "stages": [fields(stage) for stage in done.findings.stages],
            }
        )
        return
    terminal.accuracy_table([(a.name, a.evaluation, a.error) for a in done.findings.arms])
    for claim in (judged.accuracy, judged.speed, *judged.compiled):
        click.echo(claim.text)
    click.echo(f"\n{done.report}")


def _say_stage(stage: Stage) -> None:
    say_aside(f"{stage.name:<44} {'reused' if stage.reused else f'{stage.seconds:.1f} s'}")
