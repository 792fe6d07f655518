"""What calibration images are worth: real, synthetic and noise, for localizers and for networks with BatchNorm.

    make photos finetuned
    python benchmarks/calibration_study.py -o docs/calibration
    python benchmarks/calibration_study.py --quick -o /tmp/study

Four experiments (`benchmarks/study/`): localizers in INT8 and at six bits, calibrated with the images of six arms;
EfficientNet-Lite0, which the first run installs into the working folder and nowhere else; a ResNet-20 trained here and
fine-tuned at four bits; seconds to a set of images. `-o` gets the record (`study.json`), the tables (`study.md`), plots
and a picture, all made from the record but the picture. Every figure is kept in `--work` as soon as it is there, so a
study that was killed goes on. `--parts` measures some parts now and takes the others over from the record that stands
in `-o`; the record says which code each part was measured with. About two hours on two cores; `--quick` ten
minutes.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from photographs import Photographs
from record import written
from study import batchnorm, efficientnet, localizers, plots, speed, tuning
from study.arms import NOISE, REAL
from study.ledger import Study, study_in
from study.merging import completed
from study.plan import BATCHNORM, FINE_TUNING, PARTS, PHOTOGRAPHS, SPEED, Plan
from study.plans import full, least, quick
from study.report import report
from study.summary import with_summary
from torch import nn

from toolchain.artifacts import writing
from toolchain.errors import LctrError

RECORD = "study.json"
PICTURE = "{}-images.jpeg"
SHOWN = 6
"""Images of each arm in the picture."""


def main() -> None:
    """Measure what is missing; write record, tables, plots and picture."""
    options = _options()
    try:
        _study(options)
    except LctrError as error:
        sys.exit(str(error))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="Two seeds, nothing on photographs.")
    much.add_argument("--least", action="store_true", help="One seed of a few images: whether the study runs.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="Default: all.")
    parser.add_argument("--photos", type=Path, default=Photographs().folder, help="What `make photos finetuned` made.")
    parser.add_argument("--work", type=Path, default=Path(".study"), help="Images and figures are kept here.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="Of synthesis and fine-tuning.")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Folder.")
    return parser.parse_args()


def _study(options: argparse.Namespace) -> None:
    name = "quick" if options.quick else "least" if options.least else "full"
    photos = Photographs(options.photos)
    wanted = {"quick": quick, "least": least}.get(name, partial(full, photos))()
    plan, network, missing = _possible(wanted.of(options.parts), photos, options.work)
    for part, seconds in plan.seconds.items():
        print(f"{part}: about {seconds / 60:.0f} min on two idle cores", flush=True)
    print(f"all of it: about {sum(plan.seconds.values()) / 60:.0f} min, less what is done", flush=True)
    study, start = study_in(options.work, name, options.device), time.perf_counter()
    found = _measured(plan, network, photos.data, study)
    head = {"plan": name, "device": options.device, "threads": torch.get_num_threads(), "missing": missing}
    spent = {"this_run": time.perf_counter() - start, "measurements": study.ledger.seconds}
    standing = _standing(options.output, head) if set(options.parts) != set(PARTS) else {}
    code = dict.fromkeys(plan.seconds, study.code)
    record = with_summary({**head, "seconds": spent, **completed({**found, "code": code}, standing)})
    _write(record, plan, study, options.output)


def _standing(folder: Path, head: Mapping[str, Any]) -> dict[str, Any]:
    """The record in a folder, if it is of the same plan and device; empty where there is none."""
    path = folder / RECORD
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    same = all(record.get(key) == head[key] for key in ("plan", "device"))
    return record if same else {}


def _possible(plan: Plan, photos: Photographs, work: Path) -> tuple[Plan, nn.Module | None, list[str]]:
    """The plan without what cannot be had here, EfficientNet-Lite0, and one sentence for each part left out."""
    parts, missing, network = set(PARTS), [], None
    for path in (localizer.model for localizer in plan.localizers if not localizer.model.exists()):
        parts.discard(PHOTOGRAPHS)
        missing.append(f"{PHOTOGRAPHS}: there is no {path.name} of `make photos finetuned`.")
    if plan.batchnorm is not None and not photos.images.is_dir():
        parts.discard(BATCHNORM)
        missing.append(f"{BATCHNORM}: there are no photographs of `make photos`.")
    elif plan.batchnorm is not None:
        try:
            network = efficientnet.network(work / "efficientnet")
        except efficientnet.NotInstalled as error:
            parts.discard(BATCHNORM)
            missing.append(f"{BATCHNORM}: EfficientNet-Lite0 could not be installed ({error}).")
    for sentence in missing:
        print(f"Left out: {sentence}", file=sys.stderr)
    return plan.of(parts), network, missing


def _measured(plan: Plan, network: nn.Module | None, data: str, study: Study) -> dict[str, Any]:
    """The figures of each part."""
    found: dict[str, Any] = {"localizers": [localizers.measured(each, study) for each in plan.localizers]}
    if plan.batchnorm is not None and network is not None:
        found[BATCHNORM] = batchnorm.measured(plan.batchnorm, network, data, study)
    if plan.fine_tuning is not None:
        found[FINE_TUNING] = tuning.measured(plan.fine_tuning, study)
    # Also without that part: what the others made has its seconds.
    found[SPEED] = speed.measured(plan, network, data, study)
    return found


def _write(record: dict[str, Any], plan: Plan, study: Study, folder: Path) -> None:
    """All files of the result."""
    names = []
    for localizer in record["localizers"]:
        names.append(f"{localizer['name']}.png")
        plots.localizer_plot(localizer, folder / names[-1])
    if FINE_TUNING in record:
        names.append("fine-tuning.png")
        plots.tuning_plot(record[FINE_TUNING], folder / names[-1])
    for localizer in plan.localizers:
        images = localizers.pictures(localizer, study, SHOWN)
        shown = {arm: images[arm] for arm in (REAL, *localizer.routes, NOISE)}
        plots.picture(shown, folder / PICTURE.format(localizer.name))
    names += [PICTURE.format(localizer["name"]) for localizer in record["localizers"]]
    written(record, folder / RECORD)
    text = report(record, names)
    with writing(folder / "study.md") as temporary:
        temporary.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
