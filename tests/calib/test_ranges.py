"""Observation through ONNX Runtime on a two-node graph whose values can be worked out by hand."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto, helper

from calib import ranges
from calib.histograms import histogram_of
from toolchain.errors import ArtifactError, BackendError, DataError, ModelError, UsageError

GRAPH = "0" * 64


@pytest.fixture
def observer(tmp_path):
    """image -> doubled = image + image -> root = Sqrt(doubled)."""
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["image", "image"], ["block/doubled"], "add"),
            helper.make_node("Sqrt", ["block/doubled"], ["root"], "sqrt"),
        ],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in ("root", "block/doubled")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "observer.onnx"
    onnx.save(model, path)
    return path


def batches(*sizes):
    images = np.abs(np.random.default_rng(0).standard_normal((sum(sizes), 3))).astype(np.float32)
    return images, np.split(images, np.cumsum(sizes)[:-1])


def test_histograms_are_those_of_all_images_at_once(observer):
    images, parts = batches(1, 4, 2)
    reports = []
    observed = ranges.collect(
        observer,
        ["image", "block/doubled", "image"],
        iter(parts),
        total=7,
        progress=lambda done, total, note="": reports.append((done, total)),
    )
    assert observed.images == 7
    assert reports == [(1, 7), (5, 7), (7, 7)]
    for name, values in (("image", images), ("block/doubled", 2 * images)):
        expected = histogram_of(name, values)
        np.testing.assert_array_equal(observed.histograms[name].counts, expected.counts)
        assert observed.histograms[name].maximum == expected.maximum


def test_one_batch_at_a_time(observer):
    _, parts = batches(2, 2, 2)
    asked = []

    def stream():
        for part in parts:
            asked.append(len(asked))
            yield part

    seen = []
    ranges.collect(observer, ["root"], stream(), progress=lambda done, total, note="": seen.append(len(asked)))
    assert seen == [1, 2, 3]  # a batch is asked for only after the one before it was counted


def test_saved_ranges_are_read_back_to_the_bit(observer, tmp_path):
    observed = ranges.collect(observer, ["block/doubled", "root"], batches(5)[1])
    made = ranges.ranges_from_histograms(observed, "auto", graph=GRAPH)
    path = tmp_path / "ranges.json"
    ranges.save(made, path)
    assert ranges.load(path, graph=GRAPH) == made
    assert made.amax == {name: r.amax for name, r in made.tensors.items()}
    assert path.read_text().count("\n") <= 12  # a line per tensor, for a human and for diff
    assert json.loads(path.read_text())["images"] == 5
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".onnx"] == ["ranges.json"]


def test_a_file_without_factors_stands_for_no_equalization(observer, tmp_path):
    observed = ranges.collect(observer, ["root"], batches(1)[1])
    chosen = ranges.ranges_from_histograms(observed, "max", graph=GRAPH, exponents={"a/b": (-3, 0, 2), "c": (1,)})
    ranges.save(chosen, tmp_path / "r.json")
    assert ranges.load(tmp_path / "r.json", graph=GRAPH) == chosen
    record = json.loads((tmp_path / "r.json").read_text())
    del record["exponents"]
    (tmp_path / "old.json").write_text(json.dumps(record | {"schema": 1}))
    old = ranges.load(tmp_path / "old.json", graph=GRAPH)
    assert (old.exponents, old.tensors) == ({}, chosen.tensors)


def test_max_method_by_hand(observer):
    image = np.array([[0.5, 1.0, 3.0]], np.float32)
    observed = ranges.collect(observer, ["block/doubled"], [image])
    chosen = ranges.ranges_from_histograms(observed, "max", graph=GRAPH).tensors["block/doubled"]
    assert (chosen.amax, chosen.method, chosen.minimum, chosen.maximum) == (6.0, "max", 1.0, 6.0)


def test_a_known_range_overrules_the_images(observer):
    observed = ranges.collect(observer, ["image", "root"], [np.full((1, 3), 2.0, np.float32)])
    chosen = ranges.ranges_from_histograms(observed, "max", graph=GRAPH, known={"image": 3.0, "absent": 9.0})
    assert (chosen.tensors["image"].amax, chosen.tensors["image"].method) == (3.0, "known")
    # 2 stands at 84.67 steps of 3 / 127: the error is that of rounding to 85, and there is one.
    assert 0 < chosen.tensors["image"].error < 1e-4
    assert (chosen.amax["root"], chosen.tensors["root"].method) == (2.0, "max")
    assert set(chosen.tensors) == {"image", "root"}


def test_ranges_of_another_graph_are_refused(observer, tmp_path):
    observed = ranges.collect(observer, ["root"], batches(1)[1])
    ranges.save(ranges.ranges_from_histograms(observed, "max", graph=GRAPH), tmp_path / "r.json")
    with pytest.raises(
        ArtifactError, match=r"r\.json was computed for another graph \(hash 000000000000.*ffffffffffff"
    ):
        ranges.load(tmp_path / "r.json", graph="f" * 64)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "tensors": {"t": {"amax": "much"}}}'])
def test_a_file_that_is_no_range_file(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"r\.json is no range file"):
        ranges.load(tmp_path / "r.json", graph=GRAPH)


def test_other_files(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        ranges.load(tmp_path / "absent.json", graph=GRAPH)
    (tmp_path / "old.json").write_text('{"schema": 0}')
    with pytest.raises(ArtifactError, match="schema"):
        ranges.load(tmp_path / "old.json", graph=GRAPH)


def test_no_image(observer):
    with pytest.raises(DataError, match="No calibration image"):
        ranges.collect(observer, ["root"], [])


def test_nothing_to_watch(observer):
    with pytest.raises(UsageError, match=r"No tensor to observe in observer\.onnx"):
        ranges.collect(observer, [], batches(1)[1])


def test_nan_names_the_tensor(observer):
    with pytest.raises(ModelError, match="'root' holds nan"):
        ranges.collect(observer, ["block/doubled", "root"], [np.array([[1, -1, 1]], np.float32)])


def test_wrong_names(observer):
    with pytest.raises(ModelError, match="no output 'absent'"):
        ranges.collect(observer, ["absent"], batches(1)[1])
    with pytest.raises(ModelError, match=r"takes the inputs \['image'\], not \['x'\]"):
        ranges.collect(observer, ["root"], batches(1)[1], input_name="x")


def test_vendor_errors_are_translated(observer, tmp_path):
    with pytest.raises(BackendError, match=r"batch of shape \(1, 4\)"):
        ranges.collect(observer, ["root"], [np.ones((1, 4), np.float32)])
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    with pytest.raises(BackendError, match=r"cannot load .*broken\.onnx"):
        ranges.collect(tmp_path / "broken.onnx", ["root"], [])


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    images=npst.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(0, 2**60, width=32)),
    random=st.randoms(use_true_random=False),
    cuts=st.sets(st.integers(1, 11)),
)
def test_neither_the_order_of_the_images_nor_their_batches_matter(observer, images, random, cuts):
    def observed(batches):
        found = ranges.collect(observer, ["image", "block/doubled", "root"], batches)
        tensors = ranges.ranges_from_histograms(found, "auto", graph=GRAPH).tensors
        return found.images, {name: h.counts.tolist() for name, h in found.histograms.items()}, tensors

    shuffled = images[random.sample(range(len(images)), len(images))]
    parts = np.split(shuffled, sorted(cut for cut in cuts if cut < len(images)))
    assert observed(parts) == observed([images])


def test_a_graph_of_a_fixed_batch_gets_whole_batches(observer):
    model = onnx.load(observer)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, observer)
    images, parts = batches(1, 4, 2)
    observed = ranges.collect(observer, ["image", "block/doubled"], parts)
    assert observed.images == 6  # of 7: the last one fills no batch
    expected = histogram_of("t", 2 * images[:6])
    np.testing.assert_array_equal(observed.histograms["block/doubled"].counts, expected.counts)
    with pytest.raises(DataError, match="fewer than the 2 that a batch"):
        ranges.collect(observer, ["root"], parts[:1])
