"""TOML with the line of every key, and values written as TOML."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import RequestError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

KeyPath = tuple[str | int, ...]


def read_toml(path: Path, noun: str) -> tuple[str, dict[str, Any]]:
    """A file's text and the document in it. `noun` is what a message calls it ("rules file").

    Raises RequestError where it is missing, unreadable or not TOML, the last with the line."""
    try:
        text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise RequestError(f"{noun} {path} does not exist", remedy="check the path") from None
    except UnicodeDecodeError:
        raise RequestError(f"{noun} {path} is not text in UTF-8") from None
    except OSError as error:
        raise RequestError(f"{noun} {path} cannot be read: {error.strerror}") from None
    return text, parse_toml(text, f"{noun} {path}", path.name)


def parse_toml(text: str, what: str, name: str) -> dict[str, Any]:
    """The document in a text, which messages call `what`, and its lines `name`:1, 2 …

    Raises RequestError with the line where it is not TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, line = str(error), re.search(r"\(at line (\d+), column \d+\)", str(error))
        at = int(line.group(1)) if line else max(text.count("\n"), 1)
        plain = message.split(" (at ")[0]
        raise RequestError(
            f"{what} is not TOML: {plain[:1].lower()}{plain[1:]}", where=f"{name}:{at}"
        ) from None


def read_value(text: str) -> Any:
    """The value that `text` spells in TOML; the text itself where it spells none (a bare word)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) on which each table and key of a valid document begins.

    Keys are paths in the parsed document, with numbers for the members of arrays of tables:
    `("rule", 0, "keep")`. What stands inside a value (an inline table) has no line of its own.

    Parsers do not report lines, so the text is cut into statements: in TOML a statement ends at a line
    end, and the shortest run of lines that parses by itself is one statement, since an open string,
    array or table does not parse."""
    lines: dict[KeyPath, int] = {}
    members: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, statement, parsed in _statements(text):
        keys = _single_path(parsed)
        if statement.lstrip().startswith("[["):
            table = _resolve(keys, members, last=False)
            members[table] = members.get(table, -1) + 1
            table = (*table, members[table])
        elif statement.lstrip().startswith("["):
            table = _resolve(keys, members, last=True)
        else:
            for length in range(1, len(keys) + 1):
                lines.setdefault((*table, *keys[:length]), number)
            continue
        lines.setdefault(table, number)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Every statement with the line it begins on and what it parses to alone; comments are skipped."""
    lines = text.split("\n")
    begin = 0
    while begin < len(lines):
        end, parsed = begin + 1, None
        while parsed is None and end <= len(lines):
            try:
                parsed = tomllib.loads("\n".join(lines[begin:end]))
            except tomllib.TOMLDecodeError:
                end += 1
        if parsed:
            yield begin + 1, lines[begin], parsed
        begin = end


def _single_path(parsed: Mapping[str, Any]) -> tuple[str, ...]:
    """The key of one statement: the chain of tables with one member, as dotted keys parse."""
    path: tuple[str, ...] = ()
    node: Any = parsed
    while isinstance(node, Mapping) and len(node) == 1:
        (key,) = node
        path, node = (*path, key), node[key]
        if isinstance(node, list) and len(node) == 1 and node[0] == {}:
            break
    return path


def _resolve(keys: tuple[str, ...], members: Mapping[KeyPath, int], *, last: bool) -> KeyPath:
    """A header's keys as a path: a name of an array of tables means its latest member."""
    path: KeyPath = ()
    for position, key in enumerate(keys):
        path = (*path, key)
        if path in members and (last or position < len(keys) - 1):
            path = (*path, members[path])
    return path


def toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: object) -> str:
    """A string, number, truth value, list or flat table as TOML on one line.

    Raises RequestError for what TOML cannot hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return '"' + "".join(_escaped(character) for character in value) + '"'
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items()) + " }"
    raise RequestError(f"{value!r} cannot be written in TOML: it is no string, number, list or table")


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character < " " or character == "\x7f":
        return f"\\u{ord(character):04x}"
    return character
