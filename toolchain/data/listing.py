"""The lists that come with images, read line by line: a list is never half believed, and each fault has its line."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Form(Generic[Key, Value]):
    """What a line of a list looks like. Both functions raise ValueError where it does not.

    Attributes:
        text: the form in words, for messages.
        key: line -> what it is about (an id or a path), and the rest of it.
        value: the rest -> what it says.
    """

    text: str
    key: Callable[[str], tuple[Key, str]]
    value: Callable[[str], Value]


@dataclass(frozen=True)
class Listing(Generic[Key, Value]):
    """A list, read.

    Attributes:
        name: of its file, for messages.
        rows: line, counted from 1, key and value of the lines that could be read, in the file's order. Bare tuples:
            the lists of ILSVRC have over a million lines.
        mentioned: every key in the list, that of malformed lines included.
        readable: there is such a file, and it is text; nothing can be compared with a list that is not.
    """

    name: str
    rows: list[tuple[int, Key, Value]]
    mentioned: Set[Key]
    readable: bool = True

    def by_key(self) -> dict[Key, Value]:
        """Key -> value, in the file's order, of a list that has each key once."""
        return {key: value for _, key, value in self.rows}


def read_listing(folder: Path, name: str, form: Form[Key, Value], problems: list[str]) -> Listing[Key, Value]:
    """Read the list `name` below `folder`; what is wrong with it is added to `problems`. Empty lines say nothing."""
    try:
        lines = (folder / name).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        problems.append(f"{name}: missing.")
        return Listing(name, [], frozenset(), readable=False)
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{name}: cannot be read as text ({error}).")
        return Listing(name, [], frozenset(), readable=False)
    rows: list[tuple[int, Key, Value]] = []
    mentioned: set[Key] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            key, rest = form.key(line.strip())
            mentioned.add(key)
            rows.append((number, key, form.value(rest)))
        except ValueError:
            problems.append(f"{name}:{number}: '{line}' is not of the form {form.text}.")
    return Listing(name, rows, mentioned)


def first_word(line: str) -> tuple[str, str]:
    """The first word of a line, and the rest."""
    word, *rest = line.split(maxsplit=1)
    return word, "".join(rest)


def nonempty(text: str) -> str:
    """Any text.

    Raises:
        ValueError: there is none.
    """
    if not text:
        raise ValueError
    return text


def path_below(text: str) -> str:
    """A relative path with `/` between its parts, without parts that say nothing (`./`, `//`).

    Raises:
        ValueError: no path, or one that leaves its folder: a data set has no business outside of it.
    """
    parts = text.split("/")
    if text.startswith("/") or ".." in parts or "\0" in text:
        raise ValueError
    kept = [part for part in parts if part not in ("", ".")]
    if not kept:
        raise ValueError
    return "/".join(kept)


def repeats(numbered: Iterable[tuple[int, Key]]) -> Iterator[tuple[int, Key, int]]:
    """Line, key and first line of each key that was there before."""
    first: dict[Key, int] = {}
    for line, key in numbered:
        if key in first:
            yield line, key, first[key]
        first.setdefault(key, line)


def listed_twice(name: str, numbered: Iterable[tuple[int, Hashable]]) -> list[str]:
    """Problems: what a list may name once and names again."""
    return [
        f"{name}:{line}: {key} is listed a second time (first in line {first})."
        for line, key, first in repeats(numbered)
    ]


def without_line(index: Listing[Key, Any], other: Listing[Key, Any], called: Callable[[Key], str] = str) -> list[str]:
    """Problems: what `index` lists and `other` says nothing about."""
    if not (index.readable and other.readable):
        return []
    return [
        f"{index.name}:{line}: {called(key)} has no line in {other.name}."
        for line, key, _ in index.rows
        if key not in other.mentioned
    ]


def unknown_to(index: Listing[Key, Any], other: Listing[Key, Any], called: Callable[[Key], str] = str) -> list[str]:
    """Problems: what `other` speaks of and `index` does not list."""
    if not (index.readable and other.readable):
        return []
    return [
        f"{other.name}:{line}: {called(key)} is not in {index.name}."
        for line, key, _ in other.rows
        if key not in index.mentioned
    ]
