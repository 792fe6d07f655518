"""A training that was interrupted, killed, or shared by two processes ends as one that was not."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from tiny_training import SCHEDULE, cub_folder, run_on, same_weights, trained, untimed

from toolchain.errors import UsageError
from toolchain.model.lctr import Lctr
from toolchain.training.validation import Validated

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_preset")

PROGRAM = Path(tiny_training.__file__)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2]), "OMP_NUM_THREADS": "1"}
EVERYTHING = replace(SCHEDULE, accumulate=2, ema=0.9, evaluate_every=1, keep="best", layer_decay=0.7)


def first_weight(model: Lctr) -> Validated:
    """Stands in for an evaluation: a number that depends on the weights, best after an epoch in the middle."""
    return Validated(-abs(float(model.CDM.bias.detach().abs().sum()) - 0.1), 0.1, None)


@pytest.mark.parametrize("schedule", [SCHEDULE, EVERYTHING])
@pytest.mark.parametrize("step", [1, 4, 6, 8])
def test_an_interrupted_run_resumes_into_the_same_weights(tmp_path, schedule, step):
    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == step:
            raise KeyboardInterrupt

    whole, logs = trained(tmp_path / "whole.state", schedule, evaluate=first_weight)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut.state", schedule, evaluate=first_weight, progress=interrupt)
    resumed, resumed_logs = trained(tmp_path / "cut.state", schedule, evaluate=first_weight)
    assert same_weights(whole, resumed)
    assert untimed(resumed_logs) == untimed(logs)


def test_only_what_was_not_saved_is_done_again(tmp_path):
    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == 5:
            raise KeyboardInterrupt

    for save_seconds, again in ((0, 5), (1e9, 4)):
        state = tmp_path / f"{again}.state"
        with pytest.raises(KeyboardInterrupt):
            trained(state, progress=interrupt, save_seconds=save_seconds)
        done = []
        trained(state, progress=lambda step, total, note="", done=done: done.append(step))
        assert done[0] == again


def test_the_best_weights_are_kept(tmp_path):
    seen = []

    def peak(model: Lctr) -> Validated:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return Validated([1.0, 3.0, 3.0][len(seen) - 1], 0.1, None)

    model, logs = trained(tmp_path / "state", replace(SCHEDULE, evaluate_every=1, keep="best"), evaluate=peak)
    assert [log.top1 for log in logs] == [1.0, 3.0, 3.0]
    assert all(torch.equal(value, seen[1][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("every", "evaluated"), [(0, []), (1, [0, 1, 2]), (2, [1, 2])])
def test_evaluation_is_as_frequent_as_asked_for_and_sees_the_last_epoch(tmp_path, every, evaluated):
    _, logs = trained(tmp_path / "state", replace(SCHEDULE, evaluate_every=every), evaluate=first_weight)
    assert [log.epoch for log in logs if log.top1 is not None] == evaluated


@pytest.mark.parametrize("others", [{"identity": "other data"}, {"schedule": replace(SCHEDULE, label_smoothing=0.1)}])
def test_the_state_of_another_run_is_not_continued(tmp_path, others):
    trained(tmp_path / "state")
    with pytest.raises(UsageError, match="belongs to a run with other options or data"):
        trained(tmp_path / "state", **others)


@pytest.mark.parametrize("content", [b"", b"no state"])
def test_what_is_no_state_is_not_continued(tmp_path, content):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(UsageError, match="is no training state"):
        trained(tmp_path / "state")


@pytest.mark.timeout(120)
def test_a_killed_process_is_continued_bit_for_bit(tmp_path):
    with subprocess.Popen(
        [sys.executable, PROGRAM, "steps", tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
    ) as child:
        try:
            for line in child.stdout:
                if int(line) == 5:
                    break
                child.stdin.write("\n")
                child.stdin.flush()
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL
    done = []
    resumed, resumed_logs = trained(tmp_path / "state", progress=lambda step, total, note="": done.append(step))
    # The fifth step was done, and its state not yet written.
    assert done == [5, 6, 7, 8, 9]
    whole, logs = trained(tmp_path / "whole.state")
    assert same_weights(whole, resumed)
    assert untimed(resumed_logs) == untimed(logs)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.timeout(180)
def test_two_processes_train_as_one_does_and_the_first_alone_writes(tmp_path):
    data = cub_folder(tmp_path / "data")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    child = subprocess.Popen(
        [*torchrun, PROGRAM, "run", tmp_path],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=150)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    assert child.returncode == 0, output
    run_on(data, tmp_path / "one.safetensors")
    pair, one = (rows_of(tmp_path / f"{name}.log.csv") for name in ("model", "one"))
    for name in ("loss", "accuracy", "routing"):
        # The same images in the same batches; sums in another order: float32 rounding, and what Adam makes of it.
        assert [float(row[name]) for row in pair] == pytest.approx([float(row[name]) for row in one], rel=1e-4)
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(tmp_path / "one.safetensors").keys()
    written = {path.name for path in tmp_path.iterdir()} - {"data"}
    assert written == {f"{name}.{suffix}" for name in ("model", "one") for suffix in ("safetensors", "log.csv")}
