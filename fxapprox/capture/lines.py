"""The user's own line behind what runs right now."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from types import FrameType

import torch
from torch import nn

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = str(Path(__file__).resolve().parent.parent) + os.sep


@functools.cache
def is_users(filename: str) -> bool:
    """Whether code of this file is neither torch's nor ours nor made up at run time."""
    return not filename.startswith((_TORCH, _OURS, "<")) and f"{os.sep}contextlib.py" not in filename


@functools.cache
def file_of(cls: type) -> str | None:
    """The source file of a class, None where it has none."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None)


@functools.cache
def short(filename: str) -> str:
    """The file as a person names it: from the current folder, else from the import path it lies on."""
    roots = [os.getcwd(), *sorted((p for p in sys.path if p), key=len, reverse=True)]
    for root in roots:
        prefix = os.path.abspath(root) + os.sep
        if filename.startswith(prefix):
            return filename[len(prefix) :]
    return filename


def author(module: nn.Module) -> type:
    """The class that wrote the module's forward."""
    return next((cls for cls in type(module).__mro__ if "forward" in cls.__dict__), type(module))


def definition(module: nn.Module) -> str | None:
    """The line on which the module's forward is defined."""
    code = getattr(author(module).__dict__.get("forward"), "__code__", None)
    return None if code is None else f"{short(code.co_filename)}:{code.co_firstlineno}"


def user_line(prefer: str | None = None, until: FrameType | None = None) -> str | None:
    """ "models/net.py:12": the innermost line in the file `prefer`, else the innermost that is a user's.

    The search ends at the frame `until`: what lies outside it called us and is no part of the model."""
    frame: FrameType | None = sys._getframe(1)
    fallback: FrameType | None = None
    while frame is not None and frame is not until:
        filename = frame.f_code.co_filename
        if filename == prefer and is_users(filename):
            return f"{short(filename)}:{frame.f_lineno}"
        if fallback is None and is_users(filename):
            fallback = frame
            if prefer is None or not is_users(prefer):
                break
        frame = frame.f_back
    return None if fallback is None else f"{short(fallback.f_code.co_filename)}:{fallback.f_lineno}"


def raised_at(error: BaseException) -> str | None:
    """The innermost line of the user's in the traceback of an error."""
    found, trace = None, error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if is_users(filename):
            found = f"{short(filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found
