"""Run a user's file as a module that has an importable name, and blame its failures on its lines."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ..errors import CaptureError, RequestError
from .blame import short, where

_MARK = "__fxapprox_loaded__"


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """`folder` first on sys.path for the time of the block; no bytecode is written meanwhile."""
    entry, bytecode = str(folder.resolve()), sys.dont_write_bytecode
    sys.path.insert(0, entry)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = bytecode
        if entry in sys.path:  # the user's file may have rebuilt the list
            sys.path.remove(entry)


def import_file(path: Path) -> tuple[ModuleType, Path]:
    """The file as a module, and the folder that must be on sys.path to import it by that name.

    A file inside a package (folders with an `__init__.py`) gets its dotted name, so that its relative
    imports work; any other gets its stem. Where that name already belongs to another module (a user's
    `random.py`), the file gets a name of its own and cannot be imported again by it."""
    path = path.resolve()
    folder, name = path.parent, path.stem
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        name, folder = f"{folder.name}.{name}", folder.parent
    name = name.removesuffix(".__init__")
    with importable(folder), _arguments(path), _also(path.parent):
        standing = sys.modules.get(name)
        if standing is not None and _same(standing, path) and not hasattr(standing, _MARK):
            return standing, folder
        if standing is None or hasattr(standing, _MARK):
            sys.modules.pop(name, None)
            if "." in name:
                _run(lambda: importlib.import_module(name.rpartition(".")[0]), path)
        else:
            name = f"_fxapprox_user_{path.stem}"
        return _execute(name, path), folder


def import_module(name: str) -> ModuleType:
    """A module by its dotted name, as `python -m` would find it (the current folder first)."""
    folder = Path.cwd()
    with importable(folder), _arguments(Path(name)):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise _blamed(error, f"importing {name}", None) from error
            found = None
        except (Exception, SystemExit) as error:  # a parent package that fails, or no valid name
            raise _blamed(error, f"importing {name}", None) from error
        if found is None:
            raise RequestError(
                f"there is no module {name!r}",
                remedy=f"install it, or name a file: path/to/{name.rpartition('.')[2]}.py",
            )
        return _run(lambda: importlib.import_module(name), Path(found.origin or name))


def _execute(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RequestError(
            f"{short(path)} is not a Python file", remedy="name the .py file that holds the model"
        )
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    setattr(module, _MARK, True)
    sys.modules[name] = module

    def execute() -> ModuleType:
        loader.exec_module(module)
        return sys.modules.get(name, module)

    try:
        return _run(execute, path)
    except BaseException:
        sys.modules.pop(name, None)
        raise


def _run(action: Callable[[], ModuleType], path: Path) -> ModuleType:
    try:
        return action()
    except (Exception, SystemExit) as error:
        raise _blamed(error, f"importing {short(path)}", path) from error


def _blamed(error: BaseException, doing: str, path: Path | None) -> CaptureError:
    """The error of the user's code as ours: what, at which of the user's lines, and what to do."""
    if isinstance(error, SyntaxError) and error.filename and not error.filename.startswith("<"):
        text = (error.text or "").strip()
        place = f"{short(error.filename)}:{error.lineno}" + (f": {text}" if text else "")
        return CaptureError(f"syntax error: {error.msg}", where=place)
    remedy = None
    if isinstance(error, ModuleNotFoundError):
        remedy = f"install {error.name}, or run where it can be imported"
    if isinstance(error, SystemExit):
        remedy = 'put what only a script does under: if __name__ == "__main__":'
    message = f"{doing} raised {type(error).__name__}: {str(error).strip() or 'no message'}"
    return CaptureError(message, where=where(error.__traceback__, path), remedy=remedy)


@contextmanager
def _arguments(path: Path) -> Iterator[None]:
    """sys.argv as the file would see it: our own arguments are none of its business."""
    standing, sys.argv = sys.argv, [str(path)]
    try:
        yield
    finally:
        sys.argv = standing


@contextmanager
def _also(folder: Path) -> Iterator[None]:
    """A packaged file's own folder, last on sys.path: it must not shadow what is installed."""
    entry = str(folder)
    sys.path.append(entry)
    try:
        yield
    finally:
        if entry in sys.path:
            del sys.path[len(sys.path) - 1 - sys.path[::-1].index(entry)]


def _same(module: ModuleType, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve() == path
