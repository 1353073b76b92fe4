"""What the callbacks of every framework do: rewrite, follow the optimizer, re-estimate batch norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..api import rewrite
from ..errors import RequestError
from ..passes.batchnorm import reestimate_batchnorm
from ..record import ATTRIBUTE
from ..run import Attachment, attach, trains


def rewritten_with(model: nn.Module, inputs: Any, keys: Mapping[str, Any]) -> nn.Module:
    """The rewritten copy of a model. `inputs`: a tensor or tuple of positional inputs, or a dict of keyword
    inputs; `keys` as for `fxapprox.rewrite`."""
    if isinstance(inputs, Mapping):
        return rewrite(model, (), inputs, **keys)
    return rewrite(model, inputs, **keys)


def is_rewritten(model: nn.Module) -> bool:
    return ATTRIBUTE in vars(model)


class Following:
    """A model attached to the optimizers of the run that goes on; `stop` when it ends."""

    def __init__(self) -> None:
        self._attachments: list[Attachment] = []

    def start(self, model: nn.Module, optimizers: Iterable[Any]) -> None:
        """Attach the model to those of the optimizers that hold parameters of it."""
        self.stop()
        self._attachments += [
            attach(model, optimizer) for optimizer in optimizers if trains(optimizer, model)
        ]

    def stop(self) -> None:
        for attachment in self._attachments:
            attachment.remove()
        self._attachments.clear()


def reestimated_if_any(model: nn.Module, loader: Iterable[Any] | None, batches: int | None) -> None:
    """Re-estimate the model's batch norms by exact passes; nothing where it has none, with `batches` 0, or
    without a loader. Gradients need not be wanted here: frameworks validate in inference mode."""
    if loader is None or batches == 0 or not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return
    with torch.inference_mode(False):
        reestimate_batchnorm(model, loader, batches=batches)


def check_batches(batches: int | None) -> None:
    if batches is not None and (isinstance(batches, bool) or not isinstance(batches, int) or batches < 0):
        raise RequestError(
            f"batchnorm_batches = {batches!r} is no number of batches",
            remedy="give a whole number from 0 (never re-estimate) up, or None for the whole loader",
        )
