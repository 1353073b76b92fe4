"""Break long source lines at their brackets."""

from __future__ import annotations

from collections.abc import Iterator

WIDTH = 110
LEAST = 12
"""Brackets around less than this are not worth breaking."""
OPENING, CLOSING = "([{", ")]}"


def quoted(text: str) -> str:
    """A string literal, in double quotes where that needs no escapes."""
    plain = repr(text)
    return f'"{text}"' if plain[1:-1] == text and '"' not in text else plain


def wrapped(text: str, width: int = WIDTH) -> str:
    """`text` with every line that is longer than `width` broken inside its longest bracket.

    Only white space and commas behind the last item are added: the code means what it meant. A line
    without brackets, or whose brackets end on another line, stays as it is."""
    return "\n".join(piece for line in text.split("\n") for piece in _broken(line, width))


def filled(text: str, width: int = WIDTH) -> Iterator[str]:
    """The words of a paragraph, in lines of at most `width`."""
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


def _broken(line: str, width: int) -> Iterator[str]:
    pairs = _pairs(line) if len(line) > width else None
    if pairs is None:
        yield line
        return
    start, stop = max(pairs, key=lambda pair: pair[1] - pair[0], default=(0, 0))
    if stop - start < LEAST:
        yield from _bracketed(line)
        return
    indent = line[: len(line) - len(line.lstrip())] + "    "
    items = _items(line[start + 1 : stop])
    yield line[: start + 1]
    body = indent + ", ".join(items)
    if len(body) <= width and len(items) > 1 and line[start] != "{":
        yield body
    else:
        comma = "," if len(items) > 1 else ""
        for item in items:
            yield from _broken(indent + item + comma, width)
    yield from _broken(indent[:-4] + line[stop:], width)


def _bracketed(line: str) -> Iterator[str]:
    """The value of an assignment in brackets of its own; any other line as it is."""
    target, equals, value = line.partition(" = ")
    indent = line[: len(line) - len(line.lstrip())]
    if not equals or "(" in target or '"' in target:
        yield line
        return
    yield from (f"{target} = (", f"{indent}    {value}", f"{indent})")


def _pairs(line: str) -> list[tuple[int, int]] | None:
    """Positions of the outermost brackets that hold anything; None where they do not match."""
    found, stack = [], []
    for position, character in _code(line):
        if character == "#":
            return None
        if character in OPENING:
            stack.append(position)
        elif character in CLOSING:
            if not stack:
                return None
            start = stack.pop()
            if not stack and line[start + 1 : position].strip():
                found.append((start, position))
    return None if stack else found


def _items(text: str) -> list[str]:
    """`text` split at its outermost commas; a one-tuple keeps the comma that makes it one."""
    cuts, depth = [], 0
    for position, character in _code(text):
        depth += (character in OPENING) - (character in CLOSING)
        if character == "," and not depth:
            cuts.append(position)
    pieces = [text[a + 1 : b].strip() for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]
    if len(pieces) > 1 and not pieces[-1]:
        pieces.pop()
        return [pieces[0] + ","] if len(pieces) == 1 else pieces
    return pieces


def _code(text: str) -> Iterator[tuple[int, str]]:
    """Characters outside string literals, with their positions."""
    quote, position = "", 0
    while position < len(text):
        character = text[position]
        if quote:
            if character == "\\":
                position += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        else:
            yield position, character
        position += 1
