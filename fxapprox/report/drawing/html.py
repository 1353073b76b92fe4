"""The drawing as one HTML file without anything from outside: drag, zoom, search, details on hover."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from xml.sax.saxutils import escape


def html_text(svg: str, told: Mapping[str, Any], mark: str) -> str:
    """`page.html` with the drawing in it."""
    page = (files(__package__) / "page.html").read_text(encoding="utf-8")
    return page.replace("{{mark}}", mark).replace("{{title}}", escape(told["model"])).replace("{{svg}}", svg)
