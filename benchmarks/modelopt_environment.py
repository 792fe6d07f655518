"""An environment with NVIDIA ModelOpt in it, apart from ours: it pins other versions of onnx and onnxruntime."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REQUIREMENTS = Path(__file__).with_name("modelopt.txt")
CHECK = "import modelopt.onnx.quantization"


class NotInstalled(Exception):
    """ModelOpt is not to be had here; the message says why."""


def python_with_modelopt(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, which is made unless it holds just these requirements.

    Raises:
        NotInstalled: pip, or the first import, failed; `folder` is gone then.
    """
    python, stamp = folder / "bin" / "python", folder / REQUIREMENTS.name
    if stamp.exists() and stamp.read_text() == REQUIREMENTS.read_text():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run(sys.executable, "-m", "venv", str(folder))
        # Ours comes after its own packages on the path, so torch is not downloaded again and onnx is not shared.
        _site_packages(folder).joinpath("borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        _run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(REQUIREMENTS))
        _run(str(python), "-c", CHECK)
    except NotInstalled:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / ".gitignore").write_text("*\n")
    shutil.copy(REQUIREMENTS, stamp)
    return python


def _site_packages(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NotInstalled(f"{' '.join(command[1:4])} ended with {done.returncode}: {said[-1] if said else 'no word'}")
