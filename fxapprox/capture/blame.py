"""Which line of the user's own code a failure belongs to."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

_PATHS = sysconfig.get_paths()
_INSTALLED = tuple(str(Path(_PATHS[key])) + "/" for key in ("stdlib", "platstdlib", "purelib", "platlib"))
_OURS = str(Path(__file__).resolve().parent.parent) + "/"


def user_line(trace: TracebackType | None, prefer: Path | None = None) -> tuple[str, int, str] | None:
    """(file, line number, its text) of the innermost frame of the user's in a traceback.

    The user's is what is neither fxapprox, nor an installed package, nor the standard library; where
    there is no such frame (a model of an installed package), the innermost frame in `prefer`, else
    None. Frames without a file (`<string>`, frozen modules) are nobody's."""
    frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(trace)]
    real = [(name, line) for name, line in frames if not name.startswith("<")]
    own = [(name, line) for name, line in real if _is_users(name)]
    if not own and prefer is not None:
        own = [(name, line) for name, line in real if Path(name) == prefer]
    if not own:
        return None
    name, line = own[-1]
    return name, line, linecache.getline(name, line).strip()


def where(trace: TracebackType | None, prefer: Path | None = None) -> str | None:
    """`user_line` in words: "models/net.py:12: return self.fc(x)"."""
    found = user_line(trace, prefer)
    if found is None:
        return None
    name, line, text = found
    return f"{short(name)}:{line}: {text}" if text else f"{short(name)}:{line}"


def short(path: str | Path) -> str:
    """The path as a user would type it: relative to the current folder where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _is_users(name: str) -> bool:
    return not name.startswith((*_INSTALLED, _OURS)) and "site-packages" not in name
