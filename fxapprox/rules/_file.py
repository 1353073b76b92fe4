"""Rules files: TOML in, rules out, and the line of everything that is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..advice import read_silence
from ..errors import one_of
from ..problems import Problem, raise_problems, typed
from ..syntax import CHOICE_KEYS
from ..toml import key_lines, parse_toml, read_toml
from ._rule import CONDITION_KEYS, Rule, Rules, read_rule

VERSION = 1
HEAD_KEYS = ("version", "silence", "gate", "rule")


def load_rules(path: str | os.PathLike[str]) -> Rules:
    """The rules of a file, in its order, the warnings that it silences, and whether it asks for the gate.

    Raises RequestError with every problem of the file, each with its line: not there or not readable,
    not TOML, a wrong version, no rules, unknown or ill-typed keys and values."""
    path = Path(path)
    text, document = read_toml(path, "rules file")
    return _rules(text, document, path.name, str(path))


def read_rules(text: str, name: str) -> Rules:
    """The rules of a text in the language of rules files, which messages call `name`. Raises as
    `load_rules`."""
    return _rules(text, parse_toml(text, name, name), name, name)


def _rules(text: str, document: Mapping[str, Any], name: str, full: str) -> Rules:
    """`name` is what lines are told with, `full` what the whole is called."""
    silence, wrong = read_silence(document.get("silence", []))
    problems = [*_check_head(document, name, text), *wrong]
    gate = typed(document, "gate", (bool,), problems)
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        problems.append(Problem("rule must be a list of tables", ("rule",), "head each with [[rule]]"))
        tables = []
    elif not tables and not problems:
        remedy = 'a rule is, for example:\n  [[rule]]\n  policy = "topk"\n  keep = 0.5'
        problems.append(Problem(f"{name} holds no rules", (), remedy, full))
    lines = key_lines(text) if tables or problems else {}
    problems = [_located(problem, name, lines) for problem in problems]
    rules = []
    for number, table in enumerate(tables):
        origin = f"{name}:{lines.get(('rule', number), 1)}"
        values, wrong = read_rule(table)
        problems.extend(_located(problem, name, lines, ("rule", number)) for problem in wrong)
        if not wrong:
            rules.append(Rule.of(values, origin))
    raise_problems(sorted(problems, key=_line), full)
    return Rules.of(rules, silence, gate)


def _line(problem: Problem) -> int:
    line = (problem.where or "").rpartition(":")[2]
    return int(line) if line.isdigit() else 0


def _check_head(document: Mapping[str, Any], name: str, text: str) -> list[Problem]:
    """What is wrong outside the rules."""
    problems = []
    if not text.strip():
        return [Problem(f"{name} is empty", (), "begin it with: version = 1, then [[rule]]", name)]
    if "fingerprint" in document and "version" not in document:
        remedy = "in Python rules=fxapprox.Plan.load(…), on the command line --plan"
        return [Problem(f"{name} is a plan, not a rules file", (), remedy, name)]
    if "version" not in document:
        problems.append(Problem(f"{name} names no version", (), "begin it with: version = 1", name))
    elif document["version"] != VERSION or isinstance(document["version"], bool):
        message = f"version = {document['version']!r} of the rules language is not known"
        problems.append(Problem(message, ("version",), f"this fxapprox reads version = {VERSION}"))
    for key in document:
        if key not in HEAD_KEYS:
            problems.append(Problem(f"unknown key {key!r}", (key,), _misplaced(key)))
    return problems


def _misplaced(key: str) -> str:
    """The remedy for an unknown top-level key: a rule's key that stands before the first [[rule]]?"""
    if key in (*CONDITION_KEYS, *CHOICE_KEYS):
        return "a rule's keys stand below a [[rule]] line"
    return one_of(key, HEAD_KEYS)


def _located(
    problem: Problem, name: str, lines: Mapping[tuple[str | int, ...], int], at: tuple[str | int, ...] = ()
) -> Problem:
    """The problem with its file and line: that of its key, else that of the table it stands in."""
    if problem.where is not None:
        return problem
    full = (*at, *problem.key)
    while full and full not in lines:
        full = full[:-1]
    line = lines.get(full)
    return Problem(problem.message, problem.key, problem.remedy, f"{name}:{line}" if line else name)
