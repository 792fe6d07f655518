"""Bounds, each way: held, failed, within noise, and not known."""

from types import SimpleNamespace

import pytest

from engines.bootstrap import Interval
from toolchain.comparison import Accuracy, Drop
from toolchain.errors import BackendUnavailable, GateFailed, ModelError, UsageError
from toolchain.gates import Gates, check_outputs, judged

STEADY = Interval(4.0, 3.9, 4.1)


def measured(batch, p99=STEADY, throughput=STEADY, energy=STEADY, problems=()):
    return SimpleNamespace(batch=batch, p99=p99, throughput=throughput, energy=energy, problems=problems)


def latency(**of_int8):
    """FP32, which misses every bound, against INT8 at batch 1 and 8; only one batch size counts for each figure."""
    far = Interval(1e6, 1e6, 1e6)
    nothing = Interval(1e-6, 1e-6, 1e-6)
    fp32 = measured(1, p99=far, throughput=nothing, energy=far)
    rows = {
        1: {"fp32": fp32, "int8": measured(1, of_int8.get("p99", STEADY), nothing, far)},
        8: {
            "fp32": fp32,
            "int8": measured(8, far, of_int8.get("throughput", STEADY), of_int8.get("energy", STEADY)),
        },
    }
    return SimpleNamespace(baseline="fp32", batches=rows)


def accuracy(drop: Drop):
    return {
        "fp32": Accuracy(None, None),
        "int8": Accuracy(None, None, {"gt_known_loc": Drop(0, 0, 200), "top1_loc": drop}),
    }


GATES = {
    "max_p99": "int8's p99 at batch 1 is {} ms",
    "min_throughput": "int8's throughput at batch 8 is {} images/s",
    "max_energy": "int8's energy per image at batch 8 is {} mJ",
}


@pytest.mark.parametrize(("gate", "bound"), [("max_p99", 4.2), ("min_throughput", 3.8), ("max_energy", 4.2)])
def test_a_bound_outside_the_interval_holds(gate: str, bound: float) -> None:
    found = judged(Gates(**{gate: bound}), latency(), {})
    assert (found.failed, found.doubtful, found.unknown) == ((), (), ())
    found.enforce()


@pytest.mark.parametrize(
    ("gate", "bound", "told"),
    [
        ("max_p99", 3.8, "4 ms (3.9 to 4.1 at 95 %): that is over --max-p99 3.8 ms"),
        ("min_throughput", 4.2, "4 images/s (3.9 to 4.1 at 95 %): that is under --min-throughput 4.2 images/s"),
        ("max_energy", 3.8, "4000 mJ (3900 to 4100 at 95 %): that is over --max-energy 3800 mJ"),
    ],
)
def test_a_bound_that_the_whole_interval_misses_fails(gate: str, bound: float, told: str) -> None:
    found = judged(Gates(**{gate: bound}), latency(), {})
    (failed,) = found.failed
    assert told in failed
    assert failed.startswith(GATES[gate].split("{}")[0])
    with pytest.raises(GateFailed, match="int8"):
        found.enforce()


@pytest.mark.parametrize("bound", [3.95, 4.05])
@pytest.mark.parametrize("gate", list(GATES))
def test_a_bound_within_noise_passes_and_is_said(gate: str, bound: float) -> None:
    found = judged(Gates(**{gate: bound}), latency(), {})
    assert (found.failed, found.unknown) == ((), ())
    assert "within noise of --" in found.doubtful[0]
    found.enforce()


@pytest.mark.parametrize(("p99", "fails"), [(4.0, False), (4.1, True)])
def test_a_single_round_is_taken_at_its_word(p99: float, fails: bool) -> None:
    found = judged(Gates(max_p99=4.05), latency(p99=Interval(p99, None, None)), {})
    assert bool(found.failed) == fails
    assert found.doubtful == ()


def test_what_is_not_known_never_passes() -> None:
    found = judged(Gates(max_energy=1e9), latency(energy=None), {})
    assert found.unknown == (
        "int8's energy per image at batch 8 is not known, so --max-energy cannot be held: "
        "run it on a GPU that NVML can read.",
    )
    with pytest.raises(BackendUnavailable, match="--max-energy cannot be held"):
        found.enforce()
    nan = judged(Gates(max_p99=1e9), latency(p99=Interval(float("nan"), None, None)), {})
    assert "is not known" in nan.unknown[0]
    assert "int8's drop is not known" in judged(Gates(max_drop=50), latency(), {}).unknown[0]


def test_the_unknown_comes_before_what_failed() -> None:
    found = judged(Gates(max_p99=1, max_energy=1), latency(energy=None), {})
    assert len(found.failed) == 1
    with pytest.raises(BackendUnavailable):
        found.enforce()


def test_every_bound_that_failed_is_named() -> None:
    with pytest.raises(GateFailed) as failed:
        judged(Gates(max_p99=1, min_throughput=100), latency(), {}).enforce()
    assert str(failed.value).count("\n") == 1


@pytest.mark.parametrize(
    ("drop", "outcome"),
    [
        # 2 points at an error of 1: above 0.5 by 1.5 of them, less than 1.96.
        (Drop(4, 0, 200), "doubtful"),
        # 6 points, error 1.68: the interval starts at 2.7.
        (Drop(12, 0, 200), "failed"),
        # Nothing moved but to the better.
        (Drop(0, 12, 200), "held"),
        (Drop(0, 0, 200), "held"),
        # As many lost as gained: none on balance, but 10 images of 200 move.
        (Drop(5, 5, 200), "doubtful"),
    ],
)
def test_a_drop_is_held_against_its_paired_error(drop: Drop, outcome: str) -> None:
    found = judged(Gates(max_drop=0.5), latency(), accuracy(drop))
    assert (bool(found.failed), bool(found.doubtful)) == (outcome == "failed", outcome == "doubtful")
    if outcome == "failed":
        assert found.failed[0].startswith("int8's drop of top1_loc on 200 images is 6 points (2.7")


def test_alone_the_baseline_is_judged() -> None:
    alone = SimpleNamespace(baseline="fp32", batches={1: {"fp32": measured(1)}})
    assert judged(Gates(max_p99=1), alone, {}).failed[0].startswith("fp32's p99 at batch 1")


def test_broken_outputs_are_no_engine() -> None:
    check_outputs(latency())
    broken = SimpleNamespace(
        baseline="fp32", batches={4: {"fp32": measured(4), "int8": measured(4, problems=("logits is 0 everywhere",))}}
    )
    with pytest.raises(ModelError, match=r"int8 returns broken outputs at batch 4 \(logits is 0 everywhere\)"):
        check_outputs(broken)


@pytest.mark.parametrize(
    ("bound", "told"), [({"max_drop": -1}, "--max-drop -1"), ({"min_throughput": 0}, "bounds nothing")]
)
def test_bounds_that_mean_nothing_are_refused(bound: dict[str, float], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        Gates(**bound)
