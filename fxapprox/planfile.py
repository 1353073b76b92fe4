"""Plans as TOML: one table a site, the treatment in the language of rules, the facts below it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from .advice import read_silence
from .errors import RequestError
from .plan import Decision, Plan, PlanWarning
from .problems import Problem, raise_problems
from .sites import PRODUCTS, Product, Site
from .syntax import read_choice, spell_choice
from .toml import key_lines, read_toml, toml_key, toml_value
from .verdict import read_verdict

FORMAT = 1
_TOLD = ("rule", "reason", "gate", "facts")
"""Keys of a site that choose nothing."""
_FIRST_LINE = "# A plan of fxapprox"
_HEADER = f"""{_FIRST_LINE}: what is done at every site of a model. Treatments are written as in a
# rules file and may be edited; the facts are the model's, and a plan is refused for a model with others.
"""


def save_plan(plan: Plan, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a plan whole or not at all; see Plan.save."""
    path = Path(path)
    text = plan_text(plan)
    check_plan_target(path, force=force)
    try:
        write_whole(path, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error


def check_plan_target(path: Path, *, force: bool = False) -> None:
    """Raise RequestError where no plan may be written: something else stands at `path` (unless `force`),
    or its folder is not there."""
    try:
        foreign = path.exists() and not _is_plan(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    if foreign and not force:
        raise RequestError(
            f"{path} exists and is not a plan", remedy="choose another name, or overwrite it with force"
        )
    if not path.parent.is_dir():
        missing = os.strerror(errno.ENOENT)
        raise RequestError(
            f"{path} cannot be written: {missing}", remedy=f"make the folder {path.parent} first"
        )


def _is_plan(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_FIRST_LINE.encode())) == _FIRST_LINE.encode()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write beside the target and rename, so that a full disk or a signal leaves the old file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        os.chmod(temporary, mode)  # mkstemp makes files that nobody else can read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0o022)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def plan_text(plan: Plan) -> str:
    """The plan as TOML."""
    head: dict[str, object] = {"format": FORMAT, "model": plan.model, "fingerprint": plan.fingerprint}
    if plan.silence:
        head["silence"] = plan.silence
    blocks = [_HEADER + _lines(head)]
    for decision in plan.decisions:
        name = toml_value(decision.site.id)
        keys = spell_choice(decision.choice)
        if decision.rule is not None:
            keys["rule"] = decision.rule
        keys["reason"] = decision.reason
        if decision.gate is not None:
            keys["gate"] = decision.gate.spelled()
        blocks.append(f"[site.{name}]\n{_lines(keys)}")
        blocks.append(f"[site.{name}.facts]\n{_lines(_site_facts(decision.site))}")
    for warning in plan.findings:
        facts = {"name": warning.name, "message": warning.message, "remedy": warning.remedy,
                 "sites": warning.sites}  # fmt: skip
        blocks.append(f"[[warning]]\n{_lines(facts)}")
    return "\n".join(blocks)


def _lines(keys: Mapping[str, object]) -> str:
    return "".join(f"{toml_key(key)} = {toml_value(value)}\n" for key, value in keys.items())


def _site_facts(site: Site) -> dict[str, object]:
    """A site's fields; what has its default is left out, products are tables of one line."""
    facts: dict[str, object] = {}
    for field in fields(Site):
        value = getattr(site, field.name)
        default = () if field.default_factory is not MISSING else field.default
        if field.name == "products":
            facts.update({name: vars(product) for name, product in value.items()})
        elif field.name != "id" and value is not None and value != default:
            facts[field.name] = value
    return facts


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan; see Plan.load."""
    path = Path(path)
    text, document = read_toml(path, "plan")
    if document.get("format") != FORMAT:
        found = f"format = {document['format']!r}" if "format" in document else "no format"
        raise RequestError(
            f"{path} is not a plan that this fxapprox reads: {found}, wanted format = {FORMAT}",
            remedy="rules files go where rules are asked for; a plan comes from Plan.save",
        )
    silence, wrong = read_silence(document.get("silence", []))
    problems = [*_frame_problems(document), *wrong]
    decisions = []
    sites = document.get("site", {})
    for site_id, table in sites.items() if isinstance(sites, dict) else ():
        decision, wrong = _decision(site_id, table)
        problems.extend(Problem(p.message, ("site", site_id, *p.key), p.remedy) for p in wrong)
        decisions.append(decision)
    if problems:
        lines = key_lines(text)
        raise_problems([_located(problem, path.name, lines) for problem in problems], str(path))
    findings = tuple(
        PlanWarning(w["name"], w["message"], tuple(w.get("sites", ())), w.get("remedy", ""))
        for w in document.get("warning", ())
    )
    kept = tuple(decision for decision in decisions if decision is not None)
    return Plan(document["model"], document["fingerprint"], kept, findings, silence)


def _frame_problems(document: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong outside the sites."""
    for key in ("model", "fingerprint"):
        if not isinstance(document.get(key), str):
            yield Problem(f"{key} must be a string, not {document.get(key)!r}", (key,))
    if not isinstance(document.get("site", {}), dict):
        yield Problem('sites are tables: [site."layer1.conv"]', ("site",))
    warnings = document.get("warning", [])
    if not isinstance(warnings, list) or not all(
        isinstance(w, dict) and isinstance(w.get("name"), str) and isinstance(w.get("message"), str)
        for w in warnings
    ):
        yield Problem("each [[warning]] has a name and a message", ("warning",))
    for key in document:
        if key not in ("format", "model", "fingerprint", "silence", "site", "warning"):
            yield Problem(f"unknown key {key!r}", (key,))


def _decision(site_id: str, table: object) -> tuple[Decision | None, list[Problem]]:
    """One site's decision, None where its facts are damaged, and everything that is wrong."""
    if not isinstance(table, dict):
        return None, [Problem(f"site {site_id!r} must be a table, not {table!r}")]
    keys = {key: value for key, value in table.items() if key not in _TOLD}
    choice, wrong = read_choice(keys, also=_TOLD)
    problems = [Problem(f"site {site_id!r}: {p.message}", p.key, p.remedy) for p in wrong]
    try:
        site = _site(site_id, table["facts"])
        gate = read_verdict(table["gate"]) if "gate" in table else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # facts are written by the program, not by people: which of them is broken is all there is to say
        what = f"{type(error).__name__}: {error}"
        problems.append(
            Problem(f"the facts of site {site_id!r} are damaged ({what})", ("facts",), "make the plan again")
        )
        return None, problems
    reason = table.get("reason", "edited by hand")
    return Decision(site, choice, table.get("rule"), reason, gate), problems


def _site(site_id: str, facts: Mapping[str, Any]) -> Site:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()
    }
    products = {name: Product(**values.pop(name)) for name in PRODUCTS}
    values.setdefault("call", None)
    return Site(id=site_id, products=products, **values)


def _located(problem: Problem, name: str, lines: Mapping[tuple[str | int, ...], int]) -> Problem:
    key: tuple[str, ...] = problem.key
    while key and key not in lines:
        key = key[:-1]
    where = f"{name}:{lines[key]}" if key else name
    return Problem(problem.message, problem.key, problem.remedy, where)
