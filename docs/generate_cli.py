"""Write docs/cli.md from the command line's own help: `python docs/generate_cli.py`.

A test compares the page with what this makes, so the two cannot drift apart."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from fxapprox_cli.main import app

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# The command line

<!-- made by docs/generate_cli.py from the commands' help -->

`fxapprox COMMAND --help` says the same in the terminal.

**MODEL** is `path/to/model.py`, `path/to/model.py:name` or `package.module:name`. The name is a module
instance, a module class or a function that needs no arguments; dots reach into it (`model.py:Net.small`).
Without a name the file's candidates decide, the first of these groups that has any: module instances (not
parts of another one), functions of the file that are called `build_model` or annotated to return a module,
classes of the file that need no arguments. Several in that group are an error that lists them. The file is
run under its own name, with its folder on `sys.path`; what it prints goes to stderr.

**Example inputs** come from `--input`, once for each: `SHAPE[:DTYPE[:LOW..HIGH]]`, the sizes joined by `x`
(`scalar` for none), float32 unless a dtype is named, integers in LOW..HIGH with both ends (0..1 unless
given). `NAME=` makes it a keyword input, `NAME.KEY=` an entry of a keyword input that is a dict. Without
`--input` the file's `example_inputs()` is called: it returns a tensor, a tuple of positional inputs, a dict
of keyword inputs, or `((x,), {"mask": m})` for both. Give a batch of 2 or more: a batch of 1 hides what
depends on it.

**What is sampled** is said in one of three ways: `--policy` with its options is one rule over every site;
`--rules` is a file of rules ([rules.md](rules.md)), tried top to bottom, the first that matches a site
decides; `--plan` applies a plan that `--save-plan` wrote, edited or not.

**Exit codes**: 0 done; 2 the request or the input is wrong; 3 nothing was rewritten (the message has the
reasons); 130 interrupted; 1 a fault of fxapprox itself. stdout carries the result alone, a table or JSON;
messages and progress go to stderr. Files are written whole or not at all, and never over one that fxapprox
did not write, unless `--force`.
"""


def page() -> str:
    """The whole page."""
    group: Any = typer.main.get_command(app)
    parts = [HEAD]
    for name, command in group.commands.items():
        parts.append("\n".join(_command(name, command)))
    return "\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    usage = " ".join(["fxapprox", name, *(p.metavar.strip("{}") for p in arguments), "[OPTIONS]"])
    yield from (f"## fxapprox {name}", "", f"    {usage}", "")
    for line in inspect.cleandoc(command.help or "").splitlines():
        # indented lines are commands to type
        yield f"    {line.strip()}" if line.startswith(" ") else line
        if line.startswith("Examples"):
            yield ""
    yield ""
    options = [p for p in command.params if p.param_type_name == "option"]
    for panel in dict.fromkeys(p.rich_help_panel for p in options):
        yield from (f"| {panel or 'options'} | |", "|---|---|")
        for option in options:
            if option.rich_help_panel == panel:
                yield f"| {_spelling(option)} | {(option.help or '').replace('|', chr(92) + '|')} |"
        yield ""


def _spelling(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    return f"{names} `{option.metavar}`" if option.metavar else names


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
