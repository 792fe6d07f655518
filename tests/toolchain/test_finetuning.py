"""A student is what is deployed: the levels, the scales and the answers of its Q/DQ file; and how it is tuned."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_tuning import CLASSES, ONE_BLOCK, SIDE, TinyResNet, as_it_stands, one_block, tiny_images, tiny_resnet
from torch import nn

from calib import ranges as range_files
from exporters.files import read_onnx, write_onnx
from exporters.qdq import observer_from_float
from toolchain.card import ModelCard
from toolchain.errors import DataError, ModelError, ParityError, TrainingError, UsageError
from toolchain.finetuning.construction import student_from_float
from toolchain.finetuning.images import Images
from toolchain.finetuning.loop import Schedule, finetune, measure
from toolchain.finetuning.run import localizer_from_deployed
from toolchain.finetuning.student import Bits, Form, Student
from toolchain.model.deployment import DeployedLctr
from toolchain.model.lctr import Localized
from toolchain.preprocessing import Preprocessing
from toolchain.quantization import int8_from_ranges, ranges_of

FAST = Schedule(epochs=3, learning_rate=1e-3, range_epochs=2, batch_size=8)
ROUNDING = 1e-5
"""Of the largest logit: float32 sums in another order."""


def deployed(student: Student, graph: onnx.ModelProto, folder: Path) -> Path:
    """The Q/DQ file by way of the float graph and a range file, as `lctr quantize --ranges` makes it."""
    write_onnx(graph, folder / "float.onnx")
    quantized = folder / "int8.onnx"
    range_files.save(student.ranges(graph, 24), ranges_of(quantized))
    int8_from_ranges(folder / "float.onnx", ranges_of(quantized), quantized)
    return quantized


def levels_in(quantized: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    """Every tensor behind a QuantizeLinear, as ONNX Runtime computes it."""
    model = read_onnx(quantized)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    observer = quantized.with_name("observer.onnx")
    onnx.save(observer_from_float(model, names), observer)
    return dict(zip(names, as_it_stands(observer, images, *names), strict=True))


@pytest.fixture(scope="module")
def untuned() -> Student:
    return student_from_float(tiny_resnet(), Form(SIDE), Bits(4, 4, 8))


@pytest.fixture(scope="module")
def student(untuned: Student) -> Student:
    """At W4A4, tuned."""
    student = copy.deepcopy(untuned)
    finetune(student, tiny_resnet(), Images(tiny_images()), FAST)
    measure(student, tiny_images())
    return student


@pytest.fixture(scope="module")
def quantized(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployed(student, student.form.graph_of(student.plain()), tmp_path_factory.mktemp("deployed"))


def test_the_file_has_the_levels_and_scales_that_were_tuned(student: Student, quantized: Path) -> None:
    levels, constants = levels_in(quantized, tiny_images()), read_onnx(quantized).graph.initializer
    scales = {i.name: onnx.numpy_helper.to_array(i) for i in constants if i.name.endswith("/scale")}
    for layer, path in zip(student.layers, ("stem", "conv", "shortcut.0", "head"), strict=True):
        weight = layer.weight.detach()
        expected = layer.weight_scales(layer.float_weight)
        assert np.array_equal(scales[f"{path}.weight/axis0/scale"], expected.numpy().ravel())
        found = levels[f"{path}.weight/axis0/quantized"]
        assert np.array_equal(found, (weight / expected).round().numpy())
        widest = 127 if path in ("stem", "head") else 7
        assert np.abs(found).reshape(len(found), -1).max(1).tolist() == [widest] * len(found)
    for quantizer in student.quantizers:
        assert scales[f"{quantizer.tensor}/scale"] == quantizer.used_scale.numpy()
    relu = levels["relu/quantized"]
    assert relu.min() == 0
    assert relu.max() == 15


def test_the_file_answers_as_the_student_does(student: Student, quantized: Path) -> None:
    images = 3 * tiny_images()
    with torch.no_grad():
        expected = student(images).numpy()
    found = as_it_stands(quantized, images)[0]
    assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()
    with torch.no_grad():
        unquantized = student.plain()(images).numpy()
    assert np.abs(found - unquantized).max() > 100 * ROUNDING * np.abs(expected).max()


def test_what_was_tuned_fits_the_network_that_it_came_from(student: Student) -> None:
    network = TinyResNet().eval()
    network.load_state_dict(student.network_state())
    torch.testing.assert_close(network(tiny_images()), student.plain()(tiny_images()), rtol=1e-4, atol=1e-4)
    before = tiny_resnet().state_dict()
    for name, value in network.state_dict().items():
        if "running" in name or "batches" in name:
            assert torch.equal(value, before[name]), name
        else:
            assert not torch.equal(value, before[name]), name


def test_it_stands_where_the_export_quantizes(untuned: Student) -> None:
    stem, conv, shortcut, head = untuned.layers
    # Of four BatchNorms one has no convolution in front of it.
    assert [layer.norm is not None for layer in untuned.layers] == [True, True, True, False]
    assert isinstance(untuned.network.get_submodule("last_norm"), nn.BatchNorm2d)
    assert conv.activation is shortcut.activation
    assert [layer.activation.bits for layer in (stem, conv, head)] == [8, 4, 8]
    assert not any(module.training for module in untuned.train().modules())


def test_a_graph_of_other_weights_is_refused(untuned: Student, student: Student) -> None:
    with pytest.raises(ParityError, match=r"The product at 'stem' is not what was fine-tuned"):
        student.ranges(untuned.form.graph_of(untuned.plain()), 24)


class Bare(nn.Module):
    """A product of a bare parameter between two that are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, CLASSES)
        self.bare = nn.Parameter(torch.randn(4, 4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(torch.relu(self.first(images.mean((2, 3)))) @ self.bare)
        return logits


def test_a_product_that_torch_cannot_reach_is_refused_or_kept_float() -> None:
    with pytest.raises(ModelError, match=r"keep it float with --keep-float 'MatMul'"):
        student_from_float(Bare(), Form(SIDE), Bits())
    assert len(student_from_float(Bare(), Form(SIDE, keep_float=("MatMul",)), Bits()).layers) == 2


def test_a_localizer_is_equalized_tuned_and_deployed_as_one(tmp_path: Path) -> None:
    window = Preprocessing(16, 16, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    card = ModelCard(ONE_BLOCK.name, ("a", "b", "c"), window, 0.1)
    form = Form(16, card.to_metadata(), Localized._fields, window.largest)
    localizer, images = one_block(), tiny_images(side=16)
    # A channel far beyond the others, for equalization to move.
    localizer.blocks[0].norm1.weight.data[3] = 40.0  # type: ignore[union-attr, operator, index]
    student = student_from_float(DeployedLctr(localizer), form, Bits(), images)
    assert any(layer.exponents for layer in student.layers)
    finetune(student, DeployedLctr(localizer), Images(images), FAST)
    tuned = localizer_from_deployed(localizer, student.network_state())
    graph = form.graph_of(DeployedLctr(tuned))
    logits, found = as_it_stands(deployed(student, graph, tmp_path), images)
    with torch.no_grad():
        expected = student.network(images)
    for ours, theirs in ((logits, expected.logits), (found, expected.map)):
        assert np.abs(ours - theirs.numpy()).max() <= ROUNDING * float(theirs.abs().max())
    assert not torch.equal(tuned.CDM.weight, localizer.CDM.weight)
    kept = [name for name, module in student.network.named_modules() if name.endswith("fc2") and "CDM" in name]
    assert isinstance(student.network.get_submodule(kept[0]), nn.Linear)


def tuned(student: Student, schedule: Schedule = FAST, **others) -> tuple[Student, list[float]]:
    mine = copy.deepcopy(student)
    logs = finetune(mine, tiny_resnet(), others.pop("images", Images(tiny_images())), schedule, **others)
    return mine, [log.loss for log in logs]


def same(one: Student, other: Student) -> bool:
    values = other.state_dict()
    return all(torch.equal(value, values[name]) for name, value in one.state_dict().items())


def test_tuning_lowers_what_calibration_leaves_of_the_loss(untuned: Student) -> None:
    images = Images(tiny_images())
    calibrated, moved = (
        finetune(copy.deepcopy(untuned), tiny_resnet(), images, replace(FAST, epochs=12, learning_rate=rate))[-1]
        for rate in (0.0, 1e-2)
    )
    assert moved.loss < 0.95 * calibrated.loss


def test_a_rate_of_zero_observes_ranges_and_tunes_nothing(untuned: Student) -> None:
    calibrated, _ = tuned(untuned, replace(FAST, learning_rate=0.0))
    before = tiny_resnet().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in calibrated.network_state().items())
    assert all(quantizer.amax > 0 for quantizer in calibrated.quantizers)


def test_ranges_are_those_of_synthetic_images_and_are_frozen(untuned: Student) -> None:
    still = replace(FAST, learning_rate=0.0)
    alone, _ = tuned(untuned, still)
    beside, _ = tuned(untuned, still, real=Images(100 * tiny_images(5)))
    assert [q.used_scale for q in beside.quantizers] == [q.used_scale for q in alone.quantizers]
    longer, _ = tuned(untuned, replace(still, epochs=5))
    assert [q.used_scale for q in longer.quantizers] == [q.used_scale for q in alone.quantizers]


def test_scales_move_only_where_they_are_learned(untuned: Student) -> None:
    learned, _ = tuned(untuned, replace(FAST, learn_scales=True))
    frozen, _ = tuned(untuned)
    pairs = zip(learned.quantizers, frozen.quantizers, strict=True)
    assert all(one.used_scale != other.used_scale for one, other in pairs)
    graph = learned.form.graph_of(learned.plain())
    assert {found.method for found in learned.ranges(graph, 24).tensors.values()} == {"learned"}


def test_an_interrupted_tuning_ends_as_if_it_had_not_been(untuned: Student, tmp_path: Path) -> None:
    expected, losses = tuned(untuned)

    class Stopped(Exception):
        pass

    def stop(done: int, total: int, note: str = "") -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        tuned(untuned, state=tmp_path / "state", progress=stop)
    found, resumed = tuned(untuned, state=tmp_path / "state")
    assert resumed == losses
    assert same(found, expected)
    with pytest.raises(UsageError, match="belongs to another fine-tuning"):
        tuned(untuned, replace(FAST, seed=1), state=tmp_path / "state")
    (tmp_path / "state").write_bytes(b"no state")
    with pytest.raises(UsageError, match="no state of a fine-tuning"):
        tuned(untuned, state=tmp_path / "state")


def test_images_can_be_made_anew_for_each_epoch(untuned: Student) -> None:
    asked = []

    def made(epoch: int) -> Images:
        asked.append(epoch)
        return Images(tiny_images(8))

    tuned(untuned, images=made)
    assert asked == [0, 1, 2]


def test_the_rate_falls_along_a_cosine() -> None:
    schedule = Schedule(epochs=4, learning_rate=2.0)
    assert [schedule.rate(epoch) for epoch in (0, 2)] == pytest.approx([2.0, 1.0])


def test_what_cannot_be_tuned_is_refused(untuned: Student) -> None:
    with pytest.raises(DataError, match="labels from 0 to 3 do not fit"):
        tuned(untuned, images=Images(tiny_images(4), torch.arange(4)))
    with pytest.raises(DataError, match="no image"):
        tuned(untuned, images=Images(torch.zeros(0, 3, SIDE, SIDE)))
    with pytest.raises(TrainingError, match=r"lower --learning-rate \(1e\+30\)"):
        tuned(untuned, replace(FAST, learning_rate=1e30))
    with pytest.raises(UsageError, match=r"--weight-bits 3 cannot be: give 4 to 8"):
        Bits(weights=3)
    with pytest.raises(UsageError, match=r"--epochs 0 cannot be: give at least 1"):
        Schedule(epochs=0)
