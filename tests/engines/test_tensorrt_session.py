"""`running`, with the vendor and the GPU of `fake_tensorrt`, whose names are looked up in the real ones."""

import re
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import (
    SOURCE,
    DataType,
    FakeCache,
    FakeGPU,
    FakeVendor,
    images,
    opened,
)

from engines.tensorrt_session import running
from engines.timing import TimingOptions
from toolchain.errors import ArtifactError, BackendError, UsageError


def test_it_answers_what_the_engine_computes(vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        assert (session.inputs, session.outputs, session.metadata) == (("image",), ("sum",), {"tau": "0.3"})
        np.testing.assert_array_equal(session.run(images(2))["sum"], np.array([6, 24], np.float32))
        np.testing.assert_array_equal(session.run(images(1))["sum"], np.array([6], np.float32))


def test_an_answer_outlives_the_next_run_and_the_session(vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        first = session.run(images(1))["sum"]
        session.run({"image": np.full((1, 3), 9, np.float32)})
    np.testing.assert_array_equal(first, [6])


@pytest.mark.parametrize("dtype", [DataType.HALF, DataType.INT64])
def test_types_of_the_engine_are_types_of_the_arrays(gpu: FakeGPU, dtype: DataType) -> None:
    with opened(FakeVendor(gpu, dtype)) as session:
        answer = session.run(images(2, dtype.value))["sum"]
        assert answer.dtype == dtype.value
        np.testing.assert_array_equal(answer, [6, 24])


def test_bool_outputs_are_bool_arrays(gpu: FakeGPU) -> None:
    with opened(FakeVendor(gpu, DataType.FLOAT, DataType.BOOL)) as session:
        answer = session.run({"image": np.array([[0, 0, 0], [1, 0, 0]], np.float32)})["sum"]
        assert answer.dtype == np.bool_
        assert answer.tolist() == [False, True]


def test_a_strided_array_is_read_in_its_order(vendor: FakeVendor) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[:2]
    with opened(vendor) as session:
        np.testing.assert_array_equal(session.run({"image": array})["sum"], 2 * array.sum(1))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "'image' is not fed"),
        ({**images(1), "extra": np.zeros(1)}, "'extra' is no input"),
        (images(1, "float64"), r"'image' of model\.engine is float64\[1, 3\]: feed float32\[1, 3\] to float32\[4, 3\]"),
        (images(5), r"float32\[5, 3\]: feed float32\[1, 3\] to float32\[4, 3\], the engine's profile"),
        ({"image": np.zeros((0, 3), np.float32)}, r"float32\[0, 3\]: feed"),
        ({"image": np.zeros((1, 4), np.float32)}, r"float32\[1, 4\]: feed"),
        ({"image": np.zeros(3, np.float32)}, r"float32\[3\]: feed"),
    ],
)
def test_wrong_feeds_are_answered_with_the_right_ones(vendor: FakeVendor, feeds: Any, message: str) -> None:
    with opened(vendor) as session:
        for refuses in (session.run, lambda f: session.time(f, 1)):
            with pytest.raises(BackendError, match=message):
                refuses(feeds)
        assert vendor.gpu.log == []


def test_closing_gives_everything_back(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        for batch in (1, 4):
            session.run(images(batch))
            session.time(images(batch), 3, TimingOptions(streams=2, cold_cache=True))
        assert gpu.alive
    assert gpu.alive == []
    assert gpu.depth == 0


def test_an_error_in_the_block_gives_everything_back(gpu: FakeGPU, vendor: FakeVendor) -> None:
    def work() -> None:
        with opened(vendor) as session:
            session.run(images(1))
            raise KeyError("a caller's own")

    with pytest.raises(KeyError):
        work()
    assert gpu.alive == []


def test_after_closing_it_refuses(vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        session.run(images(1))
    for call in (lambda: session.run(images(1)), lambda: session.time(images(1), 1)):
        with pytest.raises(BackendError, match=r"session of model\.engine is closed: open"):
            call()


def test_two_sessions_share_the_gpu_and_one_closes_alone(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as first:
        with opened(vendor) as second:
            first.run(images(1))
            before = len(gpu.alive)
            second.run(images(4))
        assert len(gpu.alive) == before
        np.testing.assert_array_equal(first.run(images(1))["sum"], [6])


def test_buffers_are_reused_per_shape(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        session.run(images(1))
        session.run(images(2))
        made = list(gpu.alive)
        session.run(images(1))
        session.run(images(2))
        assert gpu.alive == made


def test_a_buffer_that_does_not_fit_leaves_none_behind(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        session.run(images(1))
        made, gpu.full = list(gpu.alive), True
        with pytest.raises(BackendError, match="OUT_OF_MEMORY"):
            session.run(images(2))
        assert gpu.alive == made
        np.testing.assert_array_equal(session.run(images(1))["sum"], [6])


def test_a_refused_engine_is_told_in_the_loggers_words(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with (
        pytest.raises(
            BackendError, match=r"^TensorRT refuses model\.engine \(magic tag does not match\): build"
        ) as caught,
        running(vendor, "TensorRT", b"other", SOURCE, {}),
    ):
        pytest.fail("it opened")
    assert "\n" not in str(caught.value)
    assert gpu.depth == 0


def test_an_exception_of_the_vendor_is_ours_with_its_cause(vendor: FakeVendor) -> None:
    def fails(logger: Any) -> None:
        raise TypeError("factory function returned nullptr")

    vendor.Runtime = fails
    with pytest.raises(BackendError, match="factory function returned nullptr") as caught, opened(vendor):
        pytest.fail("it opened")
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_failing_run_is_told_and_the_session_lives_on(gpu: FakeGPU, vendor: FakeVendor) -> None:
    with opened(vendor) as session:
        vendor.refuses = "illegal memory access"
        with pytest.raises(BackendError, match=r"cannot run model\.engine \(illegal memory access\)"):
            session.run(images(1))
        vendor.refuses = ""
        np.testing.assert_array_equal(session.run(images(1))["sum"], [6])
    assert gpu.alive == []


def test_an_output_whose_shape_depends_on_the_data_is_refused(gpu: FakeGPU, vendor: FakeVendor) -> None:
    vendor.output_batch = -1
    with (
        opened(vendor) as session,
        pytest.raises(BackendError, match=r"Output 'sum' .* \[-1\] that depends on the data"),
    ):
        session.run(images(1))
    assert gpu.alive == []


def test_a_type_that_numpy_lacks_is_refused_at_opening(gpu: FakeGPU) -> None:
    with (
        pytest.raises(BackendError, match=r"'sum' of model\.engine is BF16"),
        opened(FakeVendor(gpu, output_type=DataType.BF16)),
    ):
        pytest.fail("it opened")


def test_a_tensor_of_shapes_is_refused_at_opening(vendor: FakeVendor) -> None:
    vendor.locations["image"] = vendor.TensorLocation.HOST
    with pytest.raises(BackendError, match=r"'image' of model\.engine holds shapes"), opened(vendor):
        pytest.fail("it opened")


def test_a_runtime_cache_is_kept_for_the_next_session(vendor: FakeVendor, tmp_path: Path) -> None:
    cache = tmp_path / "kernels.cache"
    vendor.cache = FakeCache()
    with opened(vendor, runtime_cache=cache) as session:
        session.run(images(1))
        assert not cache.exists()
    assert cache.read_bytes() == b"kernels of today"
    assert [p.name for p in tmp_path.iterdir()] == ["kernels.cache"]


def test_a_cache_that_did_not_grow_is_not_written_again(vendor: FakeVendor, tmp_path: Path) -> None:
    cache = tmp_path / "kernels.cache"
    cache.write_bytes(b"kernels of yesterday")
    cache.chmod(0o400)
    before = cache.stat()
    vendor.cache = FakeCache()
    with opened(vendor, runtime_cache=cache) as session:
        session.run(images(1))
    assert (cache.stat().st_ino, cache.read_bytes()) == (before.st_ino, b"kernels of yesterday")


def test_a_cache_of_another_gpu_is_replaced(vendor: FakeVendor, tmp_path: Path) -> None:
    cache = tmp_path / "kernels.cache"
    cache.write_bytes(b"of another GPU")
    vendor.cache = FakeCache()
    with opened(vendor, runtime_cache=cache):
        pass
    assert cache.read_bytes() == b"kernels of today"


def test_a_cache_that_cannot_be_written_still_frees_everything(
    gpu: FakeGPU, vendor: FakeVendor, tmp_path: Path
) -> None:
    vendor.cache = FakeCache()

    def work() -> None:
        with opened(vendor, runtime_cache=tmp_path / "folder" / "kernels.cache") as session:
            session.run(images(1))
            (tmp_path / "folder").write_bytes(b"a file where the folder should be")

    with pytest.raises(ArtifactError, match="cannot be written"):
        work()
    assert gpu.alive == []


def test_a_runtime_without_a_cache_refuses_one(vendor: FakeVendor, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match=r"TensorRT keeps no runtime cache: leave .*kernels\.cache out"),
        opened(vendor, runtime_cache=tmp_path / "kernels.cache"),
    ):
        pytest.fail("it opened")


VENDOR_NAMES = {
    "Runtime": ["deserialize_cuda_engine"],
    "ILogger": ["INTERNAL_ERROR", "ERROR", "log"],
    "TensorIOMode": ["INPUT"],
    "TensorLocation": ["DEVICE"],
    "ICudaEngine": [
        "create_execution_context",
        "get_tensor_dtype",
        "get_tensor_location",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
    ],
    "IExecutionContext": ["execute_async_v3", "get_tensor_shape", "set_input_shape", "set_tensor_address"],
}
RTX_NAMES = {
    "ICudaEngine": ["create_runtime_config"],
    "IExecutionContext": ["is_stream_capturable"],
    "IRuntimeConfig": ["create_runtime_cache", "set_runtime_cache"],
    "IRuntimeCache": ["deserialize", "serialize"],
}


def test_tensorrt_rtx_has_every_name_that_the_fake_has() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="comes with the extra `rtx`")
    for names in (VENDOR_NAMES, RTX_NAMES):
        missing = [(c, m) for c, members in names.items() for m in members if not hasattr(getattr(trt, c), m)]
        assert not missing
    assert {t: np.dtype(trt.nptype(getattr(trt.DataType, t))) for t in ("FLOAT", "HALF", "INT64", "BOOL")} == {
        "FLOAT": np.float32,
        "HALF": np.float16,
        "INT64": np.int64,
        "BOOL": np.bool_,
    }
    with pytest.raises(TypeError):
        trt.nptype(trt.DataType.BF16)


TENSORRT_API = Path(sysconfig.get_path("purelib")) / "tensorrt_bindings"
"""TensorRT is not to be imported without its libraries, but read: 10.x as stubs, 11.x as compiled."""


@pytest.mark.skipif(not (TENSORRT_API / "tensorrt.pyi").exists(), reason="`make test` installs tensorrt-stubs")
def test_tensorrt_10_has_every_name_that_the_fake_has() -> None:
    # Not to be parsed: a stub of 10.13 has an argument without a default after one with it.
    _, *parts = re.split(r"^class (\w+)", (TENSORRT_API / "tensorrt.pyi").read_text(), flags=re.MULTILINE)
    classes = dict(zip(parts[::2], parts[1::2], strict=True))
    for name, members in VENDOR_NAMES.items():
        assert not [m for m in members if not re.search(rf"\b{m}\b", classes[name])], name


@pytest.mark.skipif(not (TENSORRT_API / "tensorrt.so").exists(), reason="`make test` installs tensorrt-cu13-bindings")
def test_tensorrt_11_has_every_name_that_the_fake_has() -> None:
    compiled = (TENSORRT_API / "tensorrt.so").read_bytes()
    names = [*VENDOR_NAMES, *(member for members in VENDOR_NAMES.values() for member in members)]
    assert not [name for name in names if name.encode() not in compiled]
