"""The folder of a data set: what has to be in it, and how everything found wrong in it is told at once."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from toolchain.errors import DataError


def check_root(root: Path, expected: Sequence[str], what: str) -> None:
    """Refuse a folder that is none, or that holds nothing of what is expected in it.

    Args:
        root: the folder named by the user.
        expected: names of which one at least is in a folder of this layout.
        what: the folder in words, as the end of "name the folder that ...".

    Raises:
        DataError: it is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no folder: name the folder that {what}.")
    if not any((root / name).exists() for name in expected):
        raise DataError(f"{root} holds none of {', '.join(expected)}: name the folder that {what}.")


def lists_in(
    folder: Path, required: Iterable[str] = (), optional: Iterable[str] = (), folders: Iterable[str] = ()
) -> dict[str, Path]:
    """The list files of a data set by name, without a look into them.

    Args:
        folder: of the data set.
        required: names of lists that have to be there.
        optional: names of lists that may be there.
        folders: names of folders that have to be there.

    Raises:
        DataError: something is missing.
    """
    wanted = {name: folder / name for name in required}
    missing = [name for name, file in wanted.items() if not file.is_file()]
    missing += [name for name in folders if not (folder / name).is_dir()]
    if missing:
        raise DataError(f"{folder} cannot be used: complete it.", [f"{name}: is missing." for name in missing])
    return wanted | {name: folder / name for name in optional if (folder / name).is_file()}


def refuse_problems(place: Path | str, problems: Sequence[str]) -> None:
    """End the opening of a data set where anything is wrong with it.

    Raises:
        DataError: there are problems; it lists all of them.
    """
    if problems:
        found = "one thing" if len(problems) == 1 else f"{len(problems)} things"
        raise DataError(f"{place} cannot be used as it is: mend {found} in it.", problems)
