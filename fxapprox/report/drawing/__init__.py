"""The captured graph as a picture: .svg, .html (zoom, search, details) or .dot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import RequestError, one_of
from ...planfile import write_whole
from ..facts import Captured
from .dot import dot_text
from .html import html_text
from .outline import outline
from .scene import scene
from .svg import svg_text

__all__ = ["check_target", "draw"]

FORMATS = (".svg", ".html", ".dot")
MARK = "drawn by fxapprox"


def draw(
    told: Mapping[str, Any], captured: Captured, path: str | os.PathLike[str], *, force: bool = False
) -> Path:
    """Draw a captured model with the `facts()` of a plan, in the format that the file's name asks for.

    Boxes are sites and the places where data meet, frames are modules; the fill is a site's share of the
    training FLOPs, the border what was done to it. The file is written whole or not at all.
    Raises RequestError (another ending, no folder, a file that fxapprox did not draw, no graph)."""
    target = check_target(Path(path), force=force)
    if not captured.operators:
        raise RequestError("there is no graph to draw: the model could not be traced", where=told["model"])
    drawn = outline(captured.operators, captured.edges, told["sites"])
    whole = told["totals"]["model_flops"] or told["totals"]["site_flops"]
    if target.suffix == ".dot":
        text = dot_text(drawn, whole, told, MARK)
    else:
        svg = svg_text(scene(drawn, whole), told, MARK)
        text = svg if target.suffix == ".svg" else html_text(svg, told, MARK)
    try:
        write_whole(target, text)
    except OSError as error:
        raise RequestError(f"{target} cannot be written: {error.strerror}") from error
    return target


def check_target(path: Path, *, force: bool = False) -> Path:
    """The path itself. Raises RequestError where no drawing may be written."""
    if path.suffix not in FORMATS:
        raise RequestError(f"{path} names no format that can be drawn", remedy=one_of(path.suffix, FORMATS))
    if not path.parent.is_dir():
        raise RequestError(f"there is no folder {path.parent}", remedy="make it first")
    try:
        foreign = path.exists() and MARK.encode() not in path.read_bytes()[:500]
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    if foreign and not force:
        raise RequestError(
            f"{path} exists and was not drawn by fxapprox",
            remedy="choose another name, or overwrite it with force",
        )
    return path
