"""What the tests of training share."""

from collections.abc import Iterator

import pytest
import torch
from tiny_training import TINY

from toolchain.model.presets import PRESETS


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For models so small that threads which wait for each other take longer than the sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes known, to this test alone, a preset of the size that trains in milliseconds."""
    monkeypatch.setitem(PRESETS, TINY.name, TINY)
