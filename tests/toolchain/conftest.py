"""What the tests of training share, and those of packages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from packages import localizer
from PIL import Image
from square_finder import CLASSES
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return localizer(tmp_path_factory.mktemp("exported") / "model.onnx")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wide image with a green square and a tall one with a red square."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, size, box in (("green", (61, 40), (20, 12, 38, 30)), ("red", (45, 70), (10, 25, 30, 45))):
        image = Image.new("RGB", size)
        image.paste(CLASSES[name], box)
        image.save(folder / f"{name}.png")
    return sorted(folder.iterdir())
