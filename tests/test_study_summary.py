"""What the calibration study concludes from its record: figures worked out by hand."""

from typing import Any

import pytest
from study.summary import range_ratios, spread, verdicts


def run(arm: str, seed: int, logits: float = 30.0, top1: float = 96.0, amax: float = 1.0) -> dict[str, Any]:
    figures = {"logits_snr_db": logits, "map_snr_db": 20.0, "top1": top1, "gt_known_loc": 90.0}
    return {"arm": arm, "seed": seed, "widths": {"W8A8": figures}, "amax": {"a": amax, "never": 0.0}}


def localizer(logits: float, top1: float = 96.0) -> dict[str, Any]:
    runs = [run("noise", 0, 10.0), run("guide-FDDA", 0, 5.0), run("token-FDDA", 0, logits, top1), run("real images", 0)]
    return {"localizers": [{"name": "bundled", "runs": runs}]}


def tuned(ours: tuple[float, ...], rival: tuple[float, ...]) -> dict[str, Any]:
    arms = {"L_BNS + L_C + L_D (FDDA)": ours, "zero-shot L_BNS": rival}
    runs = [
        {"arm": arm, "seed": seed, "top1": top1} for arm, values in arms.items() for seed, top1 in enumerate(values)
    ]
    return {"fine-tuning": {"runs": runs}}


def test_a_spread_is_the_sample_standard_deviation_and_a_single_run_has_none() -> None:
    assert spread([1.0, 3.0]).text(2) == "2.00 ± 1.41"
    assert spread([2.0]).text(1) == "2.0"


def test_ranges_are_compared_with_those_of_the_same_seed_and_zeros_left_out() -> None:
    real = [run("real images", 0, amax=2.0), run("real images", 1, amax=4.0)]
    # 1 / 2 and 3 / 4.
    noise = [run("noise", 1, amax=3.0), run("noise", 0, amax=1.0)]
    assert range_ratios([*noise, *real], "noise") == {"a": 0.625}


@pytest.mark.parametrize(("logits", "top1", "holds"), [(29.6, 95.9, True), (29.4, 96.0, False), (31.0, 95.7, False)])
def test_the_better_route_is_held_against_real_images(logits: float, top1: float, holds: bool) -> None:
    (verdict,) = verdicts(localizer(logits, top1))
    assert verdict.holds is holds
    assert verdict.found.startswith("token-FDDA")


def test_a_bound_is_judged_by_the_arms_and_images_that_decide() -> None:
    record = localizer(29.6)
    *others, token, real = record["localizers"][0]["runs"]
    # On the few test images the guide is best, on the many that decide it was not looked at.
    others[1]["widths"]["W8A8"]["logits_snr_db"] = 31.0
    for each, logits in ((token, 28.0), (real, 29.0)):
        each["deciding"] = {**each["widths"]["W8A8"], "logits_snr_db": logits}
    (verdict,) = verdicts(record)
    assert verdict.found.startswith("token-FDDA")
    assert "+1.00 dB of logits" in verdict.found
    # Noise, as before, on the test images.
    assert verdict.found.endswith("noise +20.00 dB of logits")
    assert not verdict.holds


@pytest.mark.parametrize(
    ("ours", "rival", "holds"),
    [((92.0, 93.0), (90.0, 91.0), True), ((91.0, 92.0), (90.5, 91.5), False), ((90.0, 90.0), (91.0, 91.0), False)],
)
def test_fdda_has_to_win_by_more_than_the_wider_spread(
    ours: tuple[float, ...], rival: tuple[float, ...], holds: bool
) -> None:
    (verdict,) = verdicts(tuned(ours, rival))
    assert verdict.holds is holds


def test_a_small_set_of_images_says_nothing_about_the_time_for_a_usable_one() -> None:
    row = {"network": "bundled", "method": "token-FDDA", "pixels": 112, "seconds": 50.0}
    assert verdicts({"speed": [{**row, "images": 64}]}) == []
    (verdict,) = verdicts({"speed": [{**row, "images": 256}]})
    assert verdict.holds
