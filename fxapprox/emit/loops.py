"""Lines that repeat for every layer of a list, as a loop over the list."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from .lines import Block, Line, names

LONGEST_PERIOD = 6
FEWEST_ROUNDS = 3
LISTS = (nn.ModuleList, nn.Sequential, nn.ParameterList)
_INDEXED = re.compile(r"\bself((?:\.\w+|\[\d+\])*\.\w+)\[(\d+)\]")


def rolled(body: list[Line], module: nn.Module, taken: set[str]) -> list[Line]:
    """Lines that repeat for every layer of a list as a loop over the list."""
    found: list[Line] = []
    position = 0
    while position < len(body):
        line = body[position]
        if isinstance(line, Block):
            found.append(Block(line.head, rolled(line.body, module, taken)))
            position += 1
            continue
        loops = (_loop(body, position, period, module, taken) for period in range(1, LONGEST_PERIOD + 1))
        best = next((loop for loop in loops if loop is not None), None)
        if best is None:
            found.append(line)
            position += 1
        else:
            found.extend(best[0])
            position += best[1]
    return found


def _loop(
    body: list[Line], start: int, period: int, module: nn.Module, taken: set[str]
) -> tuple[list[Line], int] | None:
    """The loop that begins at `start` with rounds of `period` lines, behind what must stand before it; and
    how many lines both replace."""
    first = _round(body[start : start + period])
    if first is None or len(body) - start < FEWEST_ROUNDS * period:
        return None
    text, lists, begin = first
    ahead, second = [], _round(body[start + period : start + 2 * period])
    if second is not None and second[0] != text and second[1:] == (lists, begin + 1):
        carried = _carried(text, second[0])
        if carried is None:
            return None
        ahead, text = [f"{carried[1]} = {carried[0]}"], second[0]
    rounds = 1
    while _round(body[start + rounds * period : start + (rounds + 1) * period]) == (
        text,
        lists,
        begin + rounds,
    ):
        rounds += 1
    if rounds < FEWEST_ROUNDS:
        return None
    given: dict[str, str] = {}
    for path in lists:
        wanted = path.rpartition(".")[2]
        wanted = wanted[:-1] if wanted.endswith("s") and len(wanted) > 2 else "layer"
        while wanted in taken or wanted in given.values():
            wanted += "_"
        given[path] = wanted
    spans = []
    for path in lists:
        layers = held(module, path)
        if not isinstance(layers, LISTS):
            return None
        whole = begin == 0 and rounds == len(layers)
        spans.append(f"self{path}" if whole else f"self{path}[{begin}:{begin + rounds}]")
    over = spans[0] if len(spans) == 1 else f"zip({', '.join(spans)}, strict=True)"
    lines: list[Line] = [
        re.sub(r"self((?:\.\w+|\[\d+\])*\.\w+)\[#\]", lambda m: given[m[1]], one) for one in text
    ]
    taken.update(given.values())
    return [*ahead, Block(f"for {', '.join(given.values())} in {over}:", lines)], rounds * period


def _carried(first: list[str], second: list[str]) -> tuple[str, str] | None:
    """(name in the first round, name in the others) of the value that each round takes over from the one
    before, if that is all in which the first round differs."""
    for one, other in zip(first, second, strict=True):
        if one == other:
            continue
        pairs = [
            (a, b) for a, b in zip(*(re.findall(r"\w+|\W", s) for s in (one, other)), strict=False) if a != b
        ]
        old, new = pairs[0]
        renamed = [re.sub(rf"(?<![.\w]){re.escape(old)}\b", new, line) for line in first]
        if renamed != second or not old.isidentifier() or not new.isidentifier():
            return None
        stored = False  # once the new name is bound, the old one would be another value
        for line in first:
            reads, stores = names(line.replace("#", "0"))
            if old in stores or (stored and old in reads) or (not stored and new in reads):
                return None
            stored = stored or new in stores
        return old, new
    return None


def _round(lines: Sequence[Line]) -> tuple[list[str], list[str], int] | None:
    """(lines with `#` for the index, the lists, the index) where one index serves all lists of the round."""
    indices: set[str] = set()
    lists: list[str] = []
    texts = []
    for line in lines:
        if not isinstance(line, str) or line.startswith("return"):
            return None
        for path, index in _INDEXED.findall(line):
            indices.add(index)
            if path not in lists:
                lists.append(path)
        texts.append(_INDEXED.sub(r"self\1[#]", line))
    return (texts, lists, int(indices.pop())) if len(indices) == 1 else None


def held(module: nn.Module, path: str) -> nn.Module | None:
    here: nn.Module | None = module
    for part in re.findall(r"\w+", path):
        here = here._modules.get(part) if here is not None else None
    return here
