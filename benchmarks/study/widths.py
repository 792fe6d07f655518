"""A float ONNX file quantized with the images of one arm, at several bit widths; and the ranges that the arm gives.

Ranges are chosen once, at eight bits, by `toolchain.quantization` and its default method: fewer bits keep them. The
first and the last product stay at eight bits (arXiv:2109.04186 reports both ways), as does the image.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calib import ranges
from calib.ranges import Ranges, ranges_from_histograms
from exporters.files import read_onnx, write_onnx
from exporters.qdq import graph_hash, observer_from_float
from exporters.scales import INT8, Levels, levels_of_bits
from toolchain.artifacts import writing
from toolchain.calibration import CalibrationSource, Stated
from toolchain.preprocessing import Preprocessing
from toolchain.quantization import equalized_of, int8_from_ranges, int8_onnx, placement_of, ranges_of

FIRST_LAST = 8


@dataclass(frozen=True)
class Width:
    """Bits of weights and of activations."""

    weights: int
    activations: int

    @property
    def name(self) -> str:
        """As the field writes it."""
        return f"W{self.weights}A{self.activations}"


W8A8, W8A6, W6A6 = Width(8, 8), Width(8, 6), Width(6, 6)


def quantized(
    model: Path, source: CalibrationSource, folder: Path, widths: Sequence[Width], stated: Stated
) -> dict[Width, Path]:
    """The model at each width, in files of `folder`.

    Args:
        model: float ONNX file.
        source: images of the arm.
        folder: for what is made.
        widths: of which W8A8 is what `lctr quantize` gives.
        stated: of a model that does not say what its images are.
    """
    whole = folder / "W8A8.onnx"
    int8_onnx(model, source, whole, stated=stated)
    graph = read_onnx(model)
    chosen = ranges.load(ranges_of(whole), graph=graph_hash(graph))
    even, _ = equalized_of(graph, chosen.exponents)
    sites = placement_of(even, ()).sites
    found = {}
    for width in widths:
        if width == W8A8:
            found[width] = whole
            continue
        inner = range(1, len(sites) - 1)
        bits = [width if index in inner else Width(FIRST_LAST, FIRST_LAST) for index in range(len(sites))]
        levels: dict[str, Levels] = {}
        for site, asked in zip(sites, bits, strict=True):
            signed = chosen.tensors[site.activation].minimum < 0
            held = levels_of_bits(asked.activations, signed=signed)
            # A tensor that several products read has the levels of the one with the most.
            if held.largest - held.least > _span(levels.get(site.activation)):
                levels[site.activation] = held
            levels[site.weight] = levels_of_bits(asked.weights, signed=True)
        narrow = {name: (held.least, held.largest) for name, held in levels.items() if held != INT8}
        range_file, found[width] = folder / f"{width.name}.json", folder / f"{width.name}.onnx"
        ranges.save(replace(chosen, levels=narrow), range_file)
        int8_from_ranges(model, range_file, found[width])
    return found


def observed_ranges(model: Path, source: CalibrationSource, window: Preprocessing) -> dict[str, float]:
    """Tensor -> amax on the images, of the graph as it stands: equalization would put each arm into units of its own.

    The image is left out: its range is known.
    """
    graph = read_onnx(model)
    (image,) = (value.name for value in graph.graph.input)
    watched = [name for name in placement_of(graph, ()).activations if name != image]
    with writing(model.with_name("observed.onnx")) as temporary:
        write_onnx(observer_from_float(graph, watched), temporary)
        seen = ranges.collect(temporary, watched, source.images(window), input_name=image)
        chosen: Ranges = ranges_from_histograms(seen, "auto", graph=graph_hash(graph))
    return chosen.amax


def _span(levels: Levels | None) -> int:
    return levels.largest - levels.least if levels else -1
