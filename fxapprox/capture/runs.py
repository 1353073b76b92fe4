"""Runs of the model under the recorder, on fake tensors or real ones."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CaptureError
from ._types import Inputs
from .copies import Convert, clone, copied, copied_model, fake_by, in_another_precision
from .frames import Frame
from .lines import definition, raised_at
from .observe import Observer
from .patches import patched
from .provenance import Fault, Treatment
from .recorder import Recorder
from .rng import kept_random_state, seed_all
from .state import blamed, kept_globals
from .tree import Tree
from .unseen import Unseen, WatchedFakes

_FAKES = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass
class Run:
    """What one run gave: the frames by module path, and what went wrong where."""

    training: bool
    frames: dict[str, list[Frame]]
    faults: dict[str, Fault]
    inline_wanted: set[str]
    observer: Observer | None
    seconds: float = 0.0
    error: Exception | None = None
    error_line: str | None = None


class Workshop:
    """The user's model and a copy of it to run: one of fake tensors for all runs, unless a run changed
    attributes of its modules; a fresh real one for each run on real tensors.

    `precise`: floating tensors, also those of the inputs, are float64 (float32 where they are that).
    `warm`: each copy has run once before, on these inputs, for code that prepares itself then."""

    def __init__(
        self, model: nn.Module, *, real: bool = False, precise: bool = False, warm: Inputs | None = None
    ) -> None:
        self.model, self.real, self.precise, self.warm = model, real, precise, warm
        self._mode = None if real else WatchedFakes()
        self._originals = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._replica: nn.Module | None = None
        self._tree: Tree | None = None

    def run(self, inputs: Inputs, treatment: Treatment, *, training: bool, observe: bool = False) -> Run:
        """Run the copy and record it. An exception of the model's is kept in `error`.

        The user's model, the inputs and the global random states stay as they are."""
        with kept_random_state():
            try:
                replica, tree, (args, kwargs) = self._copies(inputs)
            except CaptureError:
                raise
            except Exception as error:  # what cannot be faked (sparse tensors) runs on real ones
                return Run(training, {}, {}, set(), None, error=error)
            replica.train(training)
            seed_all(0)
            observer = Observer(tree) if observe else None
            recorder = Recorder(tree, treatment, observer)
            recorder.originals = self._originals
            if self.real:
                recorder.existing = {id(one) for one in gc.get_objects() if issubclass(type(one), Tensor)}
            found = Run(training, {}, recorder.faults, recorder.inline_wanted, observer)
            changed: dict[str, str] = {}
            started = time.perf_counter()
            with kept_globals(self.model, changed), _tracing(recorder, self._mode):
                try:
                    _outermost(recorder, replica, args, kwargs)
                except Exception as error:
                    found.error, found.error_line = error, raised_at(error)
        found.seconds = time.perf_counter() - started
        for frame in recorder.frames if changed else ():
            if (name := blamed(frame.module, changed)) is not None:
                recorder.fault(frame, f"may be what changes the global {name}", definition(frame.module))
        if recorder.changed_modules or found.error is not None:
            self._replica = None
        for frame in recorder.frames:
            found.frames.setdefault(frame.path, []).append(frame)
        return found

    def takes(self, inputs: Inputs) -> bool:
        """Whether the model itself runs on these inputs, with nobody watching."""
        with kept_random_state(), kept_globals(self.model, {}), _quiet(_FAKES):
            try:
                replica, _, (args, kwargs) = self._copies(inputs)
                seed_all(0)
                with torch.enable_grad(), self._mode or nullcontext():
                    replica.train()(*args, **kwargs)
            except Exception:
                return False
            finally:
                self._replica = None
        return True

    def _copies(self, inputs: Inputs) -> tuple[nn.Module, Tree, tuple[Any, Any]]:
        convert = clone if self._mode is None else fake_by(self._mode)
        convert = in_another_precision(convert) if self.precise else convert
        if self._replica is None or self._tree is None or self.real:
            self._replica = copied_model(self.model, convert)
            self._tree = Tree(self._replica)
            if self.warm is not None:
                self._run_once(self.warm, convert)
        return self._replica, self._tree, copied((inputs.args, dict(inputs.kwargs or {})), convert)

    def _run_once(self, inputs: Inputs, convert: Convert) -> None:
        assert self._replica is not None
        args, kwargs = copied((inputs.args, dict(inputs.kwargs or {})), convert)
        with self._mode or nullcontext():
            self._replica.train()(*args, **kwargs)


def _outermost(recorder: Recorder, model: nn.Module, args: Any, kwargs: Any) -> None:
    recorder.outermost = sys._getframe()  # the search for a user's line ends here
    model(*args, **kwargs)


@contextmanager
def _tracing(recorder: Recorder, mode: WatchedFakes | None) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_quiet(_FAKES))
        if "torch._dynamo" in sys.modules:  # parts that the user compiled run eagerly
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(patched(recorder))
        stack.enter_context(mode.watched(recorder) if mode is not None else Unseen(recorder))
        stack.enter_context(recorder)
        recorder.check_random()
        yield


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """A shape that does not fit is our probe's fault as often as the user's: no log of torch's own."""
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def model_fails(model: nn.Module, error: Exception, line: str | None) -> CaptureError:
    """The error for a model that does not run on its example inputs."""
    text = str(error).strip().splitlines()
    message = f"{type(error).__name__}: {text[0] if text else ''}".rstrip(": ")
    remedy = "the model itself must run on the example inputs: give others with --input or example_inputs()"
    if "more than 1 value per channel" in message:
        remedy = "batch normalisation trains on two examples or more: give a batch of at least 2"
    name = type(model).__name__
    return CaptureError(f"{name} fails on the example inputs: {message}", where=line, remedy=remedy)
