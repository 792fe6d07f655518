"""One real deployment, small, made once through the command line and looked at by many tests."""

import shutil
from pathlib import Path

import pytest
from deployment import DEPLOY, Deployed, lctr

from toolchain.artifacts import gpu_description
from toolchain.pipeline import BUNDLED
from toolchain.teachers import statistics_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a GPU run where there is one; elsewhere the summary lists them as not run."""
    if gpu_description() is None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="not run: this machine has no NVIDIA GPU"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled localizer with statistics and sidecars, in a folder that tests may add to."""
    folder = tmp_path_factory.mktemp("model")
    for source in BUNDLED.parent.glob(f"{BUNDLED.stem}.*"):
        shutil.copy(source, folder)
    assert statistics_of(folder / BUNDLED.name).exists()
    return folder / BUNDLED.name


@pytest.fixture(scope="session")
def deployed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    folder = tmp_path_factory.mktemp("deployed")
    printed = lctr("deploy", model, "-o", folder, *DEPLOY, "--json")
    assert printed.exit_code == 0, printed.output
    return Deployed(folder, model, printed)
