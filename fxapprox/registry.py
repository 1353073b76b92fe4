"""Registries that fill themselves: one file, one entry, no list that anybody edits."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from .errors import RequestError, one_of

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to entries. The first look-up imports every module of `package` (names that begin with
    an underscore excepted) and every installed entry point of the group `package`."""

    def __init__(self, noun: str, package: str) -> None:
        self.noun, self.package = noun, package
        self._entries: dict[str, T] = {}
        self._discovered = False

    def add(self, name: str, entry: T) -> None:
        if name in self._entries and self._entries[name] is not entry:
            raise RequestError(f"two entries claim the {self.noun} name {name!r}")
        self._entries[name] = entry

    def discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.package):
            point.load()

    def all(self) -> dict[str, T]:
        """Every entry by name, in the order of the names."""
        self.discover()
        return dict(sorted(self._entries.items()))

    def get(self, name: str) -> T:
        """The entry called `name`. Raises RequestError that lists the known names."""
        self.discover()
        if name not in self._entries:
            raise RequestError(f"unknown {self.noun} {name!r}", remedy=one_of(name, self._entries))
        return self._entries[name]

    def decorator(self, name: str) -> Callable[[T], T]:
        def register(entry: T) -> T:
            self.add(name, entry)
            return entry

        return register
