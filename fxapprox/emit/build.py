"""The last function of an emitted file: `build_model`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from . import weights
from .imports import Imports
from .tree import reach
from .wrap import wrapped

MOST_LINES = 6
"""More statements of one sort than this in build_model become a loop over names."""


@dataclass(frozen=True)
class Content:
    """What a file builds: its classes' text, the expression `root` of class `returns` that makes the model,
    the tensors and modules that are then put in a second place (path, first path), which parts keep the
    user's own forward, and why, and which hooks were left out (where they are defined, where they were)."""

    root: str
    returns: str
    classes: Sequence[str] = ()
    shared: Sequence[tuple[str, str]] = ()
    tied: Sequence[tuple[str, str]] = ()
    constants: bool = False  # whether there are tensors that no checkpoint holds
    kept: Mapping[str, str] = field(default_factory=dict)
    unwatched: Mapping[str, Sequence[str]] = field(default_factory=dict)


def build_text(model: nn.Module, content: Content, imports: Imports) -> str:
    """The function, behind the names that it loops over."""
    load = imports.spell("fxapprox.emit.runtime", "load_weights")
    apply = imports.spell("fxapprox.emit.runtime", "apply_plan")
    path = imports.spell("pathlib", "Path")
    body = [
        f"model = {content.root}",
        *_ties(model, content),
        *_frozen(model, imports),
        *_modes(model),
        *_layout(model, imports),
        f"{apply}(model, PLAN)",
    ]
    if content.constants:
        body += [
            "if weights is False:",
            f"    {load}(model, WEIGHTS, all=False)  # constants that no checkpoint holds",
            "else:",
        ]
    else:
        body += ["if weights is not False:"]
    body += [f"    {load}(model, WEIGHTS if weights is True else weights)", "return model"]
    lines = [
        f"def build_model(weights: bool | str | {path} = True) -> {content.returns}:",
        '    """The model in training mode; with the emitted weights, those of another safetensors file, or',
        '    none (`weights=False`: fresh layers and zeros, to load a checkpoint into)."""',
        *(f"    {line}" for line in body),
    ]
    text = wrapped("\n".join(lines))
    if len(list(weights.frozen(model))) > MOST_LINES:
        text = _frozen_table(model) + "\n\n\n" + text
    return text


def _ties(model: nn.Module, content: Content) -> Iterator[str]:
    for path, first in content.shared:
        yield f"{reach('model', model, path)} = {reach('model', model, first)}"
    if content.tied:
        yield "# tied"
    for name, first in content.tied:
        yield f"{reach('model', model, name)} = {reach('model', model, first)}"


def _frozen(model: nn.Module, imports: Imports) -> Iterator[str]:
    found = list(weights.frozen(model))
    if len(found) > MOST_LINES:
        yield "for name in FROZEN:"
        yield "    model.get_parameter(name).requires_grad_(False)"
        return
    for path, _ in found:
        yield f"{reach('model', model, path)}.requires_grad_(False)"


def _frozen_table(model: nn.Module) -> str:
    names = [n for n, p in model.named_parameters() if not p.requires_grad and weights.trains(p)]
    return "FROZEN = (\n" + "".join(f'    "{name}",\n' for name in names) + ")"


def _modes(model: nn.Module) -> Iterator[str]:
    if model.training:
        for path in weights.in_evaluation(model):
            yield f"{reach('model', model, path)}.eval()"


def _layout(model: nn.Module, imports: Imports) -> Iterator[str]:
    if imports.dtype is not torch.float32:
        yield f"model.to({imports.spell('torch', str(imports.dtype).removeprefix('torch.'))})"
    if weights.channels_last(model):
        yield f"model.to(memory_format={imports.spell('torch', 'channels_last')})"
