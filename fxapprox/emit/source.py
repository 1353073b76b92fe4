"""The emitted file's text: header, imports, classes, plan, build_model."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from ..errors import EmitError
from ..record import Record
from . import weights
from .build import Content, build_text
from .classes import Classes
from .expressions import Build, holes, printed, resolved
from .header import Names, header
from .imports import Imports, find
from .reader import Reader
from .table import plan_text
from .wrap import quoted


def file_text(model: nn.Module, record: Record, content: Content, imports: Imports, names: Names) -> str:
    """The whole file."""
    plan = plan_text(record.plan, [path for path, _ in model.named_modules()], imports)
    build = build_text(model, content, imports)
    constant = f"WEIGHTS = {imports.spell('pathlib', 'Path')}(__file__).with_name({quoted(names.weights)})"
    text = "\n\n\n".join([constant, *content.classes, plan, build]) + "\n"
    head = header(record, content, imports, text, names)
    return f"{head}\n\n{imports.lines(text)}\n\n{text}"


def of_classes(reader: Reader, imports: Imports) -> Content:
    """A model that was read: its modules as classes of the file."""
    classes = Classes(reader.blueprints, imports)
    root = resolved(reader.root, classes.call)
    assert isinstance(root, Build)
    return Content(
        printed(root, iter([hole.text for hole in holes(root, "")])),
        root.callee,
        [classes.text(cls) for cls in classes.found],
        reader.shared,
        list(weights.ties(reader.model)),
        reader.has_constants,
        reader.kept,
        {module: list(paths) for module, paths in reader.unwatched.items()},
    )


def of_factory(record: Record, imports: Imports, reason: str) -> Content | None:
    """A model that cannot be read: made by what the user named ("model.py:build"), if a fresh process can
    import that and no function call in it is a site; else None."""
    named = re.fullmatch(r"(.+):([A-Za-z_][\w.]*)", record.plan.model)
    if named is None or any(decision.site.call is not None for decision in record.plan.rewritten):
        return None
    try:
        module = _module_name(named[1])
        made = find(module, named[2])
        name = imports.spell(module, named[2])
    except EmitError:
        return None
    root = f"{name}()"
    if isinstance(made, nn.Module):  # a later call of build_model must not get the same instance
        root = f"{imports.spell('copy', 'deepcopy')}({name})"
    return Content(
        root, f"{imports.spell('torch.nn')}.Module", kept={"": f"it is made by {named[0]}: {reason}"}
    )


def _module_name(file: str) -> str:
    """The name by which a file is imported: dotted in a package, else its stem."""
    if not file.endswith(".py"):
        return file
    path = Path(file).resolve()
    name, folder = path.stem, path.parent
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        name, folder = f"{folder.name}.{name}", folder.parent
    return name.removesuffix(".__init__")
