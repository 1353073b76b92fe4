"""The names an emitted file imports, and how its code spells them."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import keyword
import re
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..capture.objects import made
from ..errors import EmitError
from .wrap import WIDTH, wrapped

# the spellings every reader of PyTorch code knows, in the order in which they are tried
FAMILIAR = (("nn", "torch.nn", nn), ("F", "torch.nn.functional", nn.functional), ("torch", "torch", torch))
# standard modules whose functions have names too plain to stand alone
MODULE_STYLE = frozenset({"operator", "math", "functools", "itertools", "random", "copy", "warnings"})


class Imports:
    """Collects imports and hands out names that collide with nothing in the file.

    `dtype` is the floating dtype that goes without saying: the whole model is converted to it at the end."""

    def __init__(self, reserved: Iterable[str] = (), dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self._taken = set(reserved) | set(dir(builtins)) | set(keyword.kwlist)
        self._bound: dict[tuple[str, str], str] = {}  # (module, name or "") → local name

    def reserve(self, wanted: str) -> str:
        """A free name for something the file defines: `wanted`, or `wanted` with a number behind it."""
        name, count = wanted, 1
        while name in self._taken:
            count += 1
            name = f"{wanted}{count}"
        self._taken.add(name)
        return name

    @contextmanager
    def tentative(self) -> Iterator[None]:
        """Forget what was imported inside if it ends in an error."""
        before = (set(self._taken), dict(self._bound))
        try:
            yield
        except EmitError:
            self._taken, self._bound = before
            raise

    def spell(self, module: str, qualified: str = "") -> str:
        """An expression for `qualified` of `module` ("" is the module itself), imported if need be.

        Raises EmitError where a fresh process could not import it."""
        target = find(module, qualified)
        if module == made.__module__:
            module = "fxapprox.emit.runtime"  # what emitted files use stands in one place
        if module == "builtins" and qualified not in self._taken - set(dir(builtins)):
            return qualified
        for alias, home, package in FAMILIAR:
            if target is package:
                return self._bind(home, "", alias)
            name = qualified.rpartition(".")[2]
            if name and module.split(".")[0] == "torch" and getattr(package, name, None) is target:
                return f"{self._bind(home, '', alias)}.{name}"
        if not qualified or module in MODULE_STYLE:
            home = self._bind(module, "", module.rpartition(".")[2])
            return f"{home}.{qualified}" if qualified else home
        first, dot, rest = qualified.partition(".")
        return self._bind(module, first, first) + dot + rest

    def spell_object(self, target: Any) -> str | None:
        """An expression for a class or function, None where it cannot be imported by its own name."""
        module, qualified = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
        if not isinstance(module, str) or not isinstance(qualified, str) or "<" in qualified:
            return None
        try:
            if find(module, qualified) is not target:
                return None
            return self.spell(module, qualified)
        except EmitError:
            return None

    def spell_in_module(self, target: type) -> str:
        """Like `spell_object`, through its module's name: for bases of classes that bear the same name.

        Raises EmitError where it cannot be imported."""
        module, qualified = target.__module__, target.__qualname__
        if find(module, qualified) is not target:
            raise EmitError(
                f"{qualified} of {module} is another class by now",
                remedy="rewrite the model in a process where its class is the one that its module defines",
            )
        return f"{self._bind(module, '', module.rpartition('.')[2])}.{qualified}"

    def lines(self, text: str) -> str:
        """The import statements that `text` needs: the standard library, then everything else."""
        whole: tuple[list[str], list[str]] = [], []
        names: tuple[dict[str, list[str]], dict[str, list[str]]] = defaultdict(list), defaultdict(list)
        for module, name, local in self._used(text):
            third = module.split(".")[0] not in sys.stdlib_module_names
            package, _, last = module.rpartition(".")
            if name:
                names[third][module].append(name if name == local else f"{name} as {local}")
            elif package and local == last:
                names[third][package].append(last)
            else:
                whole[third].append(f"import {module}" + ("" if local == module else f" as {local}"))
        blocks = []
        for plain, members in zip(whole, names, strict=True):
            lines = sorted(plain)
            for module, parts in sorted(members.items()):
                line = f"from {module} import {', '.join(sorted(parts))}"
                if len(line) > WIDTH:
                    line = wrapped(f"from {module} import ({', '.join(sorted(parts))})")
                lines.append(line)
            blocks.append("\n".join(lines))
        return "\n\n".join(block for block in blocks if block)

    def own(self, text: str) -> list[str]:
        """Modules that `text` needs and that are neither installed nor of the standard library."""
        return sorted({module for module, _, _ in self._used(text) if not installed(module)})

    def packages(self, text: str) -> dict[str, list[str]]:
        """Installed packages besides torch and fxapprox that `text` needs, and what it takes from each."""
        found: dict[str, list[str]] = defaultdict(list)
        for module, name, _ in sorted(self._used(text)):
            top = module.split(".")[0]
            known = top in sys.stdlib_module_names or top in ("torch", "fxapprox")
            if not known and installed(module):
                found[top].append(name or module)
        return dict(found)

    def _used(self, text: str) -> Iterator[tuple[str, str, str]]:
        """(module, name in it, name in the file) of what `text` mentions."""
        words = set(re.findall(r"[A-Za-z_]\w*", text))
        return ((module, name, local) for (module, name), local in self._bound.items() if local in words)

    def _bind(self, module: str, name: str, wanted: str) -> str:
        if (module, name) not in self._bound:
            self._bound[module, name] = self.reserve(wanted)
        return self._bound[module, name]


def find(module: str, qualified: str) -> Any:
    """What `from module import qualified` gives. Raises EmitError where a fresh process could not."""
    if module == "__main__" or "<" in qualified:
        raise EmitError(
            f"{qualified} of {module} cannot be imported by another program",
            remedy="define it at the top level of a file of its own, and rewrite the model from there",
        )
    try:
        found: Any = importlib.import_module(module)
        for part in filter(None, qualified.split(".")):
            found = getattr(found, part)
    except (ImportError, AttributeError) as failure:
        raise EmitError(
            f"{qualified or module} cannot be imported from {module}: {failure}",
            remedy="the emitted file needs it by name: make it importable, or name its module in leaf=",
        ) from failure
    return found


def installed(module: str) -> bool:
    """Whether every environment with the same packages can import `module`."""
    top = module.split(".")[0]
    if top in sys.stdlib_module_names or top in ("torch", "fxapprox"):
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    places = [*(spec.submodule_search_locations or [])] if spec else []
    places += [spec.origin] if spec and spec.origin else []
    homes = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")]
    return any(home in Path(place).resolve().parents for place in places for home in homes)
