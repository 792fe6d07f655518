"""Memory of sessions: given back when one is closed, and no more of it after many calls."""

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_localizer import images, opened

from engines.backend import Input, Session
from engines.registry import open_engine
from engines.torch_runtime import TorchBackend

WIDTH = 4096
WEIGHTS = 4 * WIDTH**2
"""Bytes, 64 MiB: more than the allocator ever keeps for later."""
SLACK = 4 * 2**20
"""Bytes by which a process may grow and shrink on its own."""
RUNS = 10_000


def resident() -> int:
    """Bytes of this process's own in memory; the pages of a library come with its first use, and stay."""
    gc.collect()
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def heavy_onnx(folder: Path) -> AbstractContextManager[Session]:
    """x (batch, 4096) times a matrix."""
    stored = numpy_helper.from_array(np.ones((WIDTH, WIDTH), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "heavy", [x], [y], [stored])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "heavy.onnx")
    return open_engine(folder / "heavy.onnx")


def heavy_torch(folder: Path) -> AbstractContextManager[Session]:
    """The same as a module."""
    module = torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.float32)
    taken = Input("x", np.dtype(np.float32), ("batch", WIDTH))
    return TorchBackend().session_from_module(module, [taken], ["y"], {}, "heavy")


@pytest.mark.parametrize("heavy", [heavy_onnx, heavy_torch])
def test_closing_gives_the_weights_back(
    heavy: Callable[[Path], AbstractContextManager[Session]], tmp_path: Path
) -> None:
    # A session still referred to after it was closed must hold nothing, either.
    kept = []
    # What a runtime sets up once, for all sessions, it keeps.
    with heavy(tmp_path) as first:
        first.run({"x": np.ones((1, WIDTH), np.float32)})
    del first
    before = resident()
    with heavy(tmp_path) as session:
        session.run({"x": np.ones((1, WIDTH), np.float32)})
        kept.append(session)
        assert resident() - before > 0.9 * WEIGHTS
    assert resident() - before < 0.5 * WEIGHTS


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["onnxruntime", "torch", "memory"])
def test_ten_thousand_runs_leak_nothing(runner: str, tmp_path: Path) -> None:
    feeds = images(2)
    with opened(runner, tmp_path) as session:
        for _ in range(RUNS // 10):
            session.run(feeds)
        session.time(feeds, RUNS // 10)
        before = resident()
        for _ in range(RUNS):
            session.run(feeds)
        after_running = resident()
        session.time(feeds, RUNS)
        assert after_running - before < SLACK
        assert resident() - after_running < SLACK


@pytest.mark.gpu
@pytest.mark.parametrize("runner", ["onnxruntime:cuda", "torch:cuda"])
def test_ten_thousand_runs_leak_no_device_memory(runner: str, tmp_path: Path) -> None:
    feeds = images(2)
    with opened(runner, tmp_path) as session:
        session.run(feeds)
        session.time(feeds, 10)
        before = torch.cuda.mem_get_info()[0]
        for _ in range(RUNS):
            session.run(feeds)
        session.time(feeds, RUNS)
        assert before - torch.cuda.mem_get_info()[0] < SLACK


@pytest.mark.gpu
@pytest.mark.parametrize("runner", ["onnxruntime:cuda", "torch:cuda"])
def test_opening_and_closing_again_and_again_leaks_no_device_memory(runner: str, tmp_path: Path) -> None:
    free = []
    for turn in range(6):
        (tmp_path / str(turn)).mkdir()
        with opened(runner, tmp_path / str(turn)) as session:
            session.time(images(2), 10)
        free.append(torch.cuda.mem_get_info()[0])
    assert free[1] - free[-1] < SLACK
