"""Tensors made by code that no torch function shows: scripted functions, what numpy hands over.

They reach the dispatcher while no call that was seen runs; a forward that uses one cannot be captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .recorder import Recorder


class WatchedFakes(FakeTensorMode):
    """The mode that traces run in. Tensors from outside the model (global constants) may be real."""

    recorder: Recorder | None = None

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True, static_shapes=True)

    @contextmanager
    def watched(self, recorder: Recorder) -> Iterator[None]:
        """Active, and telling `recorder` what it did not see."""
        self.recorder = recorder
        try:
            with self:
                yield
        finally:
            self.recorder = None

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if self.recorder is None:
            return super().__torch_dispatch__(func, types, args, given)
        inner = super().__torch_dispatch__
        return _watched(self.recorder, func, args, lambda: inner(func, types, args, given))


class Unseen(TorchDispatchMode):
    """The same for runs on real tensors."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return _watched(self.recorder, func, args, lambda: func(*args, **(kwargs or {})))


def _watched(recorder: Recorder, func: Any, args: Sequence[Any], run: Callable[[], Any]) -> Any:
    if recorder.seen_running or recorder.top is None:
        return run()
    with recorder.running():
        result = run()
    if func is torch.ops.aten.lift_fresh.default:  # a tensor made from Python's data: its values are at hand
        recorder.lifted(result, args[0])
        return result
    recorder.unseen(result, f"code that a trace cannot look into ({func})")
    return result
