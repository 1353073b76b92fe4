"""Where the modules, tensors and other attributes of a model are, seen from any of its modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .nests import Path, is_plain

_REGISTRIES = ("_parameters", "_buffers", "_modules")
_INTERNAL = (*_REGISTRIES, "_non_persistent_buffers_set", "training", "_is_full_backward_hook")


class Tree:
    """Names by identity. A thing may have several names (shared modules, tied weights)."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules: dict[int, list[str]] = {}
        self.parameters: dict[int, str] = {}  # first qualified names
        self._things: dict[int, list[tuple[str, str, Path]]] = {}  # id → (module path, attribute, steps)
        self._kept: list[Any] = []  # ids stay theirs while this lives
        for path, module in model.named_modules(remove_duplicate=False):
            self.modules.setdefault(id(module), []).append(path)
        for path, module in model.named_modules():
            self._note_attributes(path, module)
        for name, parameter in model.named_parameters():
            self.parameters[id(parameter)] = name

    def _note_attributes(self, path: str, module: nn.Module) -> None:
        for registry in ("_parameters", "_buffers"):
            for name, value in module.__dict__[registry].items():
                if value is not None:
                    self._note(value, path, name, ())
        for name, value in module.__dict__.items():
            if type(value) is float:
                self._note(value, path, name, ())
            elif name not in _INTERNAL and not is_plain(value) and not name.endswith("_hooks"):
                self._note(value, path, name, ())
                for steps, item in _items(value):
                    self._note(item, path, name, steps)

    def _note(self, value: Any, path: str, name: str, steps: Path) -> None:
        self._things.setdefault(id(value), []).append((path, name, steps))
        self._kept.append(value)

    def path(self, module: nn.Module) -> str | None:
        """The first path of a module, None for one that is not the model's."""
        found = self.modules.get(id(module))
        return found[0] if found else None

    def module_below(self, owner: str, module: nn.Module) -> str | None:
        """The module's path from the module at `owner`, None where it is not in that subtree."""
        for path in self.modules.get(id(module), ()):
            if (below := _below(owner, path)) is not None:
                return below
        return None

    def thing_below(self, owner: str, thing: Any) -> tuple[str, Path] | None:
        """(dotted attribute, steps into it) of a tensor or object, from the module at `owner`."""
        for path, name, steps in self._things.get(id(thing), ()):
            if (below := _below(owner, path)) is not None:
                return (f"{below}.{name}" if below else name), steps
        return None

    def number_at(self, owner: str, number: float) -> str | None:
        """The attribute that this very float is: the only one of the module at `owner`, or else below it."""
        below = [
            f"{inner}.{name}" if inner else name
            for path, name, _ in self._things.get(id(number), ())
            if (inner := _below(owner, path)) is not None
        ]
        own = [name for name in below if "." not in name]
        return (own or below)[0] if len(own or below) == 1 else None

    def owns(self, thing: Any) -> bool:
        """Whether any module of the model holds this object as an attribute."""
        return id(thing) in self._things


def _below(owner: str, path: str) -> str | None:
    if not owner:
        return path
    if path == owner:
        return ""
    return path[len(owner) + 1 :] if path.startswith(owner + ".") else None


def _items(value: Any) -> Iterator[tuple[Path, Any]]:
    """Tensors and modules in a list, tuple or dict that a module keeps."""
    if isinstance(value, list | tuple):
        for position, item in enumerate(value):
            if isinstance(item, Tensor | nn.Module):
                yield (("item", position),), item
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Tensor | nn.Module) and isinstance(key, str | int):
                yield (("item", key),), item
