"""From a rewritten model to its two files: read, print, save, try out, publish."""

from __future__ import annotations

import os
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..capture.rng import kept_random_state
from ..errors import EmitError
from ..record import Record, record_of
from .files import check_free, publish, staging, target_of, unwritable
from .header import Names
from .imports import Imports
from .methods import local_names
from .reader import Reader
from .source import file_text, of_classes, of_factory
from .weights import common_dtype, tensors_of, ties, write_weights


def write(model: nn.Module, path: str | os.PathLike[str], *, force: bool = False) -> tuple[Path, ...]:
    """Write `path` and, beside it, the weights as safetensors; returns both paths.

    The source builds the same module tree: the names, shapes, dtypes, ties and `requires_grad` of the
    model, its captured forwards, and its plan. It is imported and compared before anything is put in
    place. Raises EmitError (the model cannot be written, a file stands there that fxapprox did not
    write, the folder is full or closed); then nothing is left behind."""
    record = record_of(model)
    target = target_of(path)
    saved = target.with_suffix(".safetensors")
    check_free((target, saved), force=force)
    names = Names(target.stem, saved.name, version("fxapprox"))
    text, extra = _text(model, record, names)
    with staging(target) as folder:
        try:
            (folder / target.name).write_text(text, encoding="utf-8", newline="\n")
            write_weights(tensors_of(model, extra), folder / saved.name, names.version)
            _try_out(folder / target.name, model)
            publish(folder, (saved, target))
        except (OSError, SafetensorError) as failure:  # safetensors wraps what the disk says
            raise unwritable(target, failure) from failure
    return target, saved


def _text(model: nn.Module, record: Record, names: Names) -> tuple[str, dict[str, Tensor]]:
    """The file's text, and the tensors it needs that are no buffers of the model."""
    taken = {name for forward in record.forwards.values() for name in local_names(forward)}
    taken |= {"PLAN", "WEIGHTS", "FROZEN", "build_model"}
    imports = Imports(taken, common_dtype(model))
    try:
        reader = Reader(model, record, imports)
        return file_text(model, record, of_classes(reader, imports), imports, names), reader.extra
    except EmitError as failure:
        imports = Imports(taken)
        content = of_factory(record, imports, failure.message)
        if content is None:
            raise
        return file_text(model, record, content, imports, names), {}


def _try_out(file: Path, model: nn.Module) -> None:
    """Build the model from the file and compare. Raises EmitError where it is another one."""
    module = types.ModuleType(f"_{file.parent.name.strip('.').replace('.', '_')}")
    module.__file__ = str(file)
    code = compile(file.read_text(encoding="utf-8"), str(file), "exec")
    sys.modules[module.__name__] = module  # constructors may look for the source of their class
    with kept_random_state():
        try:
            exec(code, module.__dict__)
            built = module.build_model()
        except Exception as failure:
            line = _line_in(file, failure)
            raise EmitError(
                f"the emitted file does not run: {type(failure).__name__}: {failure}{line}",
                remedy="this is a fault of fxapprox, unless a constructor of your own failed",
            ) from failure
        finally:
            del sys.modules[module.__name__]
    wrong = difference(model, built)
    if wrong:
        raise EmitError(
            f"the emitted file builds another model: {wrong}", remedy="this is a fault of fxapprox"
        )


def _line_in(file: Path, failure: Exception) -> str:
    """The deepest line of the emitted file in the traceback, as text."""
    found, frame = "", failure.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(file):
            found = file.read_text(encoding="utf-8").splitlines()[frame.tb_lineno - 1].strip()
        frame = frame.tb_next
    return f" (at: {found})" if found else ""


def difference(model: nn.Module, built: nn.Module) -> str | None:
    """The first difference in what two models hold, None where there is none."""
    ours, theirs = _state(model), _state(built)
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        return f"the state_dict's keys differ: {', '.join(odd[:5])}"
    for name, value in ours.items():
        other = theirs[name]
        facts = [
            (t.dtype, tuple(t.shape), t.requires_grad, isinstance(t, nn.Parameter)) for t in (value, other)
        ]
        if facts[0] != facts[1]:
            return f"{name}: {facts[0]} became {facts[1]}"
        if not torch.equal(value.detach().cpu(), other.detach()) and not bool(value.isnan().any()):
            return f"{name} has other values"
    tied = [sorted(ties(each)) for each in (model, built)]
    if _groups(tied[0]) != _groups(tied[1]):
        return f"ties differ: {tied[0]} became {tied[1]}"
    return None


def _state(model: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = model.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _groups(pairs: list[tuple[str, str]]) -> set[tuple[str, str]]:
    return set(pairs)
