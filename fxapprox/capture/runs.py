"""One run of the model under the recorder, on fake tensors or real ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError
from ._types import Inputs
from .copies import clone, copied, copied_model, fake_by, fakes
from .frames import Frame
from .lines import raised_at
from .observe import Observer
from .patches import Unseen, patched
from .recorder import Fault, Recorder, Treatment
from .rng import kept_random_state, seed_all
from .tree import Tree


@dataclass
class Run:
    """What one run gave: the frames by module path, and what went wrong where."""

    training: bool
    frames: dict[str, list[Frame]]
    faults: dict[str, Fault]
    inline_wanted: set[str]
    observer: Observer | None
    real: bool
    error: Exception | None = None
    error_line: str | None = None


def run(
    model: nn.Module, inputs: Inputs, treatment: Treatment, *, training: bool, real: bool, observe: bool
) -> Run:
    """Run a copy of the model and record it. An exception of the model's is kept in `error`.

    `model`, `inputs` and the global random states stay as they are."""
    mode = None if real else fakes()
    convert = clone if mode is None else fake_by(mode)
    with kept_random_state():
        replica = copied_model(model, convert)
        args, kwargs = copied((inputs.args, dict(inputs.kwargs or {})), convert)
        replica.train(training)
        seed_all(0)
        tree = Tree(replica)
        observer = Observer(tree) if observe else None
        recorder = Recorder(tree, treatment, observer)
        found = Run(training, {}, recorder.faults, recorder.inline_wanted, observer, real)
        recorder.outermost = sys._getframe()
        with _tracing(recorder, mode):
            try:
                replica(*args, **kwargs)
            except Exception as error:
                found.error = error
                found.error_line = raised_at(error)
    for frame in recorder.frames:
        found.frames.setdefault(frame.path, []).append(frame)
    return found


@contextmanager
def _tracing(recorder: Recorder, mode: Any) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # parts that the user compiled run eagerly
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(patched(recorder))
        stack.enter_context(mode if mode is not None else nullcontext())
        stack.enter_context(Unseen(recorder))
        stack.enter_context(recorder)
        recorder.check_random()
        yield


def model_fails(model: nn.Module, error: Exception, line: str | None) -> CaptureError:
    """The error for a model that does not run on its example inputs."""
    text = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
    remedy = "the model itself must run on the example inputs: give others with --input or example_inputs()"
    if "more than 1 value per channel" in message:
        remedy = "batch normalisation trains on two examples or more: give a batch of at least 2"
    name = type(model).__name__
    return CaptureError(f"{name} fails on the example inputs: {message}", where=line, remedy=remedy)
