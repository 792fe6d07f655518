"""The README's commands, in its order, in one folder, as a user who reads nothing else would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"^```console\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]


def test_every_command_runs(tmp_path: Path) -> None:
    (tmp_path / "toolchain").symlink_to(ROOT / "toolchain")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert len(COMMANDS) >= 9
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert list((tmp_path / "overlays").glob("*.png"))


def test_every_command_and_option_it_names_exists() -> None:
    from cli import main

    for name in re.findall(r"`?lctr ([a-z]+)\b", README):
        assert name in main.commands or name in ("takes", "does"), name
    parameters = [parameter for command in main.commands.values() for parameter in command.params]
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README)):
        assert option in options, option


def test_every_make_target_it_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake (\w+)", README)) - {"and"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
