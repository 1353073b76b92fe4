"""Lines that repeat for every layer of a list, as a loop over the list."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from .lines import Block, Line, used_before, used_behind

LONGEST_PERIOD = 6
FEWEST_ROUNDS = 3
LISTS = (nn.ModuleList, nn.Sequential, nn.ParameterList)
_INDEXED = re.compile(r"\bself((?:\.\w+|\[\d+\])*\.\w+)\[(\d+)\]")
_ITEM = re.compile(r"self((?:\.\w+|\[\d+\])*\.\w+)\[#\]")


def rolled(body: list[Line], module: nn.Module, taken: set[str], after: set[str]) -> list[Line]:
    """`body` with loops. `taken` are all names of the function, `after` those used behind the body."""
    found: list[Line] = []
    behind = used_behind(body, after)
    position = 0
    while position < len(body):
        line = body[position]
        if isinstance(line, Block):
            again = used_before(line, behind[position]) if line.head.startswith("for ") else set()
            found.append(Block(line.head, rolled(line.body, module, taken, behind[position] | again)))
            position += 1
            continue
        loops = (
            _loop(body, position, period, module, taken, behind) for period in range(1, LONGEST_PERIOD + 1)
        )
        best = next((loop for loop in loops if loop is not None), None)
        if best is None:
            found.append(line)
            position += 1
        else:
            found.extend(best[0])
            position += best[1]
    return found


@dataclass(frozen=True)
class Round:
    """What is done for one layer: lines with marks for names, and the names.

    `reads` and `stores` are positions among the names in the order in which they happen, line by line;
    `lists` are the lists of layers, all at `index`."""

    shape: tuple[str, ...]
    names: tuple[str, ...]
    events: tuple[tuple[int, bool], ...]  # (position, whether it is bound there)
    lists: tuple[str, ...]
    index: int

    def defined(self) -> dict[str, int]:
        """Name → the position where the round binds it last."""
        return {self.names[position]: position for position, stored in self.events if stored}

    def sources(self) -> dict[int, int | str]:
        """Position of every read → the position in this round that made the value, or the name it came by."""
        made: dict[str, int] = {}
        found: dict[int, int | str] = {}
        for position, stored in self.events:
            name = self.names[position]
            if stored:
                made[name] = position
            else:
                found[position] = made.get(name, name)
        return found


def _round(lines: Sequence[Line]) -> Round | None:
    """The lines as a round, None where they are none: no index, or several."""
    shape, names, events = [], list[str](), list[tuple[int, bool]]()
    lists: dict[str, None] = {}
    indices: set[str] = set()
    if not any(isinstance(line, str) and _INDEXED.search(line) for line in lines):
        return None
    for line in lines:
        if not isinstance(line, str) or line.startswith("return") or not line.isascii():
            return None
        for path, index in _INDEXED.findall(line):
            lists[path] = None
            indices.add(index)
        try:
            tree = ast.parse(line)
        except SyntaxError:
            return None
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id != "self"]
        found.sort(key=lambda node: node.col_offset)
        text = line
        for node in reversed(found):
            text = text[: node.col_offset] + "\0" + text[node.end_col_offset :]
        shape.append(_INDEXED.sub(r"self\1[#]", text))
        stored = [(len(names) + i, not isinstance(node.ctx, ast.Load)) for i, node in enumerate(found)]
        events += sorted(stored, key=lambda event: event[1])  # a line reads before it binds
        names += [node.id for node in found]
    if len(indices) != 1:
        return None
    return Round(tuple(shape), tuple(names), tuple(events), tuple(lists), int(indices.pop()))


def _loop(
    body: list[Line], start: int, period: int, module: nn.Module, taken: set[str], behind: list[set[str]]
) -> tuple[list[Line], int] | None:
    """The loop that begins at `start` with rounds of `period` lines, behind what must stand before it; and
    how many lines both replace."""
    rounds: list[Round] = []
    for first in range(start, len(body) - period + 1, period):
        one = _round(body[first : first + period])
        if one is None or (rounds and not _follows(rounds[0], one, len(rounds))):
            break
        rounds.append(one)
    for count in range(len(rounds), max(FEWEST_ROUNDS, len(rounds) - 2) - 1, -1):
        carried = _carried(rounds[:count], behind[start + count * period - 1])
        if carried is not None:
            head = _head(rounds[0], count, module, taken)
            if head is None:
                return None
            found: list[Line] = [*carried[0], _block(rounds[0], carried[1], *head)]
            return found, count * period
    return None


def _block(first: Round, names: Sequence[str], head: str, layers: Mapping[str, str]) -> Block:
    """The loop: the round's lines with `names` at the marks and the layers' names for `list[#]`."""
    text = "\n".join(first.shape)
    for name in names:
        text = text.replace("\0", name, 1)
    return Block(head, list(_ITEM.sub(lambda match: layers[match[1]], text).split("\n")))


def _follows(first: Round, other: Round, distance: int) -> bool:
    return (other.shape, other.lists, other.index) == (first.shape, first.lists, first.index + distance)


def _carried(rounds: Sequence[Round], after: set[str]) -> tuple[list[str], tuple[str, ...]] | None:
    """(assignments before the loop, names in its body) where the rounds differ in names only: the names are
    the last round's, and what a round takes over from the one before gets the name it has there."""
    last, sources = rounds[-1], [each.sources() for each in rounds]
    names, ends = list(last.names), last.defined()
    begun: dict[str, str] = {}  # name in the loop → name of its first value
    fixed: set[str] = set()
    bound: set[str] = set()  # names bound so far in the round
    for position, stored in last.events:
        if stored:
            bound.add(names[position])
            continue
        made = [source[position] for source in sources]
        if isinstance(made[-1], int):
            if len(set(made)) > 1:
                return None
            continue
        before = {one.defined().get(str(name)) for one, name in zip(rounds[:-1], made[1:], strict=True)}
        if before == {None} and len(set(made)) == 1:
            fixed.add(str(made[0]))
            continue
        origin = before.pop()
        if before or origin is None or isinstance(made[0], int) or ends[last.names[origin]] != origin:
            return None
        name = last.names[origin]
        if name in bound or begun.setdefault(name, str(made[0])) != made[0]:
            return None
        names[position] = name
    firsts = {name: value for name, value in begun.items() if name != value}
    if fixed & (ends.keys() | begun.keys()) or firsts.keys() & set(begun.values()):
        return None
    lost = {name for one in rounds[:-1] for name in one.defined()} - ends.keys()
    if lost & after:
        return None
    return [f"{name} = {value}" for name, value in firsts.items()], tuple(names)


def _head(first: Round, count: int, module: nn.Module, taken: set[str]) -> tuple[str, dict[str, str]] | None:
    """The `for` line, and the layers' names by list; None where something else than a list is indexed."""
    given: dict[str, str] = {}
    spans = []
    for path in first.lists:
        layers = held(module, path)
        if not isinstance(layers, LISTS):
            return None
        wanted = path.rpartition(".")[2]
        wanted = wanted[:-1] if wanted.endswith("s") and len(wanted) > 2 else "layer"
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        given[path] = wanted
        whole = first.index == 0 and count == len(layers)
        spans.append(f"self{path}" if whole else f"self{path}[{first.index}:{first.index + count}]")
    over = spans[0] if len(spans) == 1 else f"zip({', '.join(spans)}, strict=True)"
    return f"for {', '.join(given.values())} in {over}:", given


def held(module: nn.Module, path: str) -> nn.Module | None:
    """The module at `path` (".layers[0].blocks") below `module`, None where there is none."""
    here: nn.Module | None = module
    for part in re.findall(r"\w+", path):
        here = here._modules.get(part) if here is not None else None
    return here
