"""Our quantizer against ONNX Runtime's and NVIDIA ModelOpt's: the same float ONNX file, the same calibration images.

    make demo
    python benchmarks/quantizers.py --images .demo/synthetic -o docs/benchmarks/quantizers.json

Each quantizer runs once in a process of its own, which says how long it took and what it added to the memory of a
process that holds libraries and images already. All files are then evaluated by one ONNX Runtime on the same held-out
images, and compiled by TensorRT-RTX for its portable targets. A quantizer that fails, a file that cannot be run and one
that cannot be compiled keep their row, with the cause. ModelOpt is installed on the first run, into --environment.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from modelopt_environment import NotInstalled, python_with_modelopt
from numpy.typing import NDArray
from record import markdown, written

from calib import image_set
from engines.backend import BuildOptions
from engines.build import build
from engines.inspect import inspect
from engines.registry import open_engine
from toolchain import stages
from toolchain.artifacts import identity
from toolchain.card import ModelCard
from toolchain.comparison import Accuracy
from toolchain.data.dataset import DataSet
from toolchain.data.sources import open_data
from toolchain.errors import LctrError
from toolchain.evaluation import Outputs, collect_outputs, evaluate, output_error
from toolchain.model.checkpoint import card_of
from toolchain.pipeline import BUNDLED

WORKER = Path(__file__).with_name("quantize_once.py")
REFERENCE = "FP32"
CAUSE = 240
"""Characters of a cause that stand below the table; the record has all of them."""
COLUMNS = ("", "logits SNR dB", "map SNR dB", "Top-1", "GT-Known Loc", "Top-1 Loc")
COMPILED_COLUMNS = ("INT8 layers", "INT8 attention", "fused attention", "engine MB")
COST_COLUMNS = ("quantize s", "added MB")


@dataclass(frozen=True)
class Contender:
    """One way to quantize.

    Attributes:
        tool: key of `quantize_once.TOOLS`.
        method: of calibration, as the tool calls it.
        scope: what is quantized, as the tool is asked for it.
        base: precision of the float ONNX file that it reads.
    """

    tool: str
    method: str
    scope: str
    base: str = "fp32"

    @property
    def name(self) -> str:
        """As in the table."""
        read = "" if self.base == "fp32" else f", {self.base} file"
        return f"{self.tool} {self.method}, {self.scope}{read}"


CONTENDERS = (
    *(Contender("lctr", method, "our placement") for method in ("auto", "max", "percentile", "mse", "entropy")),
    Contender("lctr", "auto", "our placement", "fp16"),
    Contender("onnxruntime", "min-max", "defaults"),
    *(
        Contender("onnxruntime", method, scope)
        for scope in ("for TensorRT", "for TensorRT, weights' products")
        for method in ("min-max", "entropy", "percentile")
    ),
    Contender("onnxruntime", "min-max", "for TensorRT, weights' products", "fp16"),
    *(Contender("modelopt", method, scope) for scope in ("fp32", "fp16") for method in ("max", "entropy")),
)


def main() -> None:
    """Quantize, evaluate, compile; write the record and print the table."""
    options = _options()
    card = card_of(options.model)
    record: dict[str, Any] = {"model": options.model.name, **identity(options.model), "data": options.data}
    pythons = _interpreters(options.environment, record)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = folder / "images.npy"
        window = card.preprocessing
        images = image_set.read(options.images, window.image_size, window.crop, limit=options.limit)
        np.save(calibration, window.normalize(images))
        record["calibration"] = f"{len(images)} images of {options.images.name}"
        files = {}
        for precision, form in (("fp32", REFERENCE), ("fp16", f"{REFERENCE} as fp16")):
            files[form] = folder / f"{precision}.onnx"
            stages.float_onnx(options.model, files[form], precision=precision)
        rows: dict[str, dict[str, Any]] = {form: {} for form in files}
        for contender in (c for c in CONTENDERS if c.tool in pythons and options.only in c.name):
            print(f"{contender.name} ...", file=sys.stderr)
            output = folder / f"{len(rows)}.onnx"
            found = _quantized(pythons[contender.tool], contender, folder, calibration, output)
            rows[contender.name] = {**asdict(contender), **found}
            if "failed" not in found:
                files[contender.name] = output
        _evaluate(files, rows, card, options)
        for form, path in files.items():
            print(f"compiling {form} ...", file=sys.stderr)
            rows[form] |= {"file_bytes": path.stat().st_size, **_compiled(path)}
    record["quantizers"] = rows
    written(record, options.output)
    print(_table(rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="A checkpoint; the bundled localizer by default.")
    parser.add_argument("--data", default="shapes", help="Where the held-out images are.")
    parser.add_argument("--test-images", type=int, help="So many of them; all by default.")
    parser.add_argument("--images", type=Path, default=Path(".demo/synthetic"), help="Folder of calibration images.")
    parser.add_argument("--limit", type=int, help="So many of them, at even distances; all by default.")
    parser.add_argument("--only", default="", help="Contenders with this in their name.")
    parser.add_argument("--environment", type=Path, default=Path(".venv-modelopt"), help="ModelOpt is installed here.")
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _interpreters(environment: Path, record: dict[str, Any]) -> dict[str, str]:
    """Tool -> its interpreter; what cannot be installed is missing, and the record says why."""
    pythons = {"lctr": sys.executable, "onnxruntime": sys.executable}
    try:
        pythons["modelopt"] = str(python_with_modelopt(environment.absolute()))
    except NotInstalled as error:
        record["modelopt_not_installed"] = str(error)
        print(f"ModelOpt could not be installed ({error}): the others are compared without it.", file=sys.stderr)
    return pythons


def _quantized(python: str, contender: Contender, folder: Path, images: Path, output: Path) -> dict[str, Any]:
    """What it cost, or why it failed."""
    # On a copy and in that folder: ModelOpt writes shapes into what it reads, ONNX Runtime files to where it stands.
    model = shutil.copy(folder / f"{contender.base}.onnx", output.with_suffix(".float.onnx"))
    command = [python, str(WORKER), contender.tool, contender.method, contender.scope]
    command += [str(path) for path in (model, images, output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"failed": f"status {done.returncode}: {said[-1] if said else 'no word'}"}
    return {"cost": json.loads(done.stdout.strip().splitlines()[-1])}


def _evaluate(
    files: Mapping[str, Path], rows: dict[str, dict[str, Any]], card: ModelCard, options: argparse.Namespace
) -> None:
    """Add accuracy and distance from FP32 to each row whose file ONNX Runtime runs; all at FP32's tau."""
    held_out = open_data(options.data, "test", card.preprocessing, options.test_images)
    reference = _outputs(files[REFERENCE], held_out, card)
    for name, path in files.items():
        print(f"evaluating {name} ...", file=sys.stderr)
        try:
            found = reference if name == REFERENCE else _outputs(path, held_out, card)
        except LctrError as error:
            rows[name]["not_run"] = str(error)
            continue
        distance = output_error(found, reference, card.tau) if name != REFERENCE else None
        rows[name]["accuracy"] = Accuracy(evaluate(found, card.tau), distance).as_dict()


def _outputs(path: Path, held_out: DataSet, card: ModelCard) -> Outputs:
    """Of one file, with FP32's preprocessing: not every quantizer keeps a file's metadata."""
    with open_engine(path) as session:

        def predict(images: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            outputs = session.run({"image": images})
            return outputs["logits"], outputs["map"]

        return collect_outputs([predict], held_out, card.preprocessing)[0]


def _compiled(path: Path) -> dict[str, Any]:
    """What TensorRT-RTX makes of a file; `not_compiled` says why where it refuses."""
    engine = path.with_suffix(".engine")
    try:
        build(path, "tensorrt-rtx", engine, BuildOptions(), min_coverage=0)
        seen = inspect(engine)
    except LctrError as error:
        return {"not_compiled": str(error)}
    engine_bytes = engine.stat().st_size
    facts = {"counts": seen.counts, "fused_attention": seen.fused_attention, "layers": seen.layers}
    return {"compiled": {**facts, "engine_bytes": engine_bytes}}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    cells = [[name, *_accuracy_cells(row), *_compiled_cells(row), *_cost_cells(row)] for name, row in rows.items()]
    causes = [
        f"- {name}: {row[key][:CAUSE]}"
        for name, row in rows.items()
        for key in ("failed", "not_run", "not_compiled")
        if key in row
    ]
    return "\n".join([markdown((*COLUMNS, *COMPILED_COLUMNS, *COST_COLUMNS), cells), "", *causes])


def _accuracy_cells(row: Mapping[str, Any]) -> list[str]:
    if "accuracy" not in row:
        return [""] * (len(COLUMNS) - 1)
    distance, rates = row["accuracy"]["error"], row["accuracy"]["evaluation"]
    snr = [f"{distance[key]:.1f}" for key in ("logits_snr_db", "map_snr_db")] if distance else ["", ""]
    return [*snr, *(f"{rates[key]:.2f}" for key in ("top1", "gt_known_loc", "top1_loc"))]


def _compiled_cells(row: Mapping[str, Any]) -> list[str]:
    if "compiled" not in row:
        return [""] * len(COMPILED_COLUMNS)
    compiled = row["compiled"]
    counts = compiled["counts"]
    weighted = [counts.get(kind, {}) for kind in ("linear", "convolution")]
    layers = f"{sum(c.get('int8', 0) for c in weighted)} of {sum(sum(c.values()) for c in weighted)}"
    attention = counts.get("attention", {})
    return [
        layers,
        f"{attention.get('int8', 0)} of {sum(attention.values())}",
        str(compiled["fused_attention"]),
        f"{compiled['engine_bytes'] / 1e6:.1f}",
    ]


def _cost_cells(row: Mapping[str, Any]) -> list[str]:
    if "cost" not in row:
        return [""] * len(COST_COLUMNS)
    return [f"{row['cost']['seconds']:.1f}", f"{row['cost']['added_bytes'] / 1e6:.0f}"]


if __name__ == "__main__":
    main()
