import pytest

from toolchain.errors import UsageError
from toolchain.quantities import DURATION, ENERGY, LATENCY, WARM_UP, Kind, quantity


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("5ms", LATENCY, 5.0),
        ("250 us", LATENCY, 0.25),
        ("0.5s", LATENCY, 500.0),
        ("1e6ms", LATENCY, 1e6),
        (".5ms", LATENCY, 0.5),
        ("40mJ", ENERGY, 0.04),
        ("2J", ENERGY, 2.0),
        # As trtexec has them.
        ("3", DURATION, 3.0),
        ("200", WARM_UP, 200.0),
        ("1min", DURATION, 60.0),
    ],
)
def test_units_are_converted(text: str, kind: Kind, value: float) -> None:
    assert quantity("--x", text, kind) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "soon", "-5ms", "5 parsecs", "ms", "nanms", "5mss", ""])
def test_a_bound_needs_a_number_and_its_unit(text: str) -> None:
    with pytest.raises(UsageError, match=rf"--max-p99 {text} is no latency: write it as 5ms \(us, ms, s\)"):
        quantity("--max-p99", text, LATENCY)
