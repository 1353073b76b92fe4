"""The recorder: sees every torch call of the user's code and writes it into the frame it belongs to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..kinds import Call, Kind, recognise
from .calls import DATA_SHAPED, OPENED_ATTENTION, READS, SHAPE_READS, made_from_numpy, normal_form
from .facts import Foreign, OddValue, SiteName
from .frames import Frame
from .lines import definition
from .nests import tensors
from .observe import Observer
from .provenance import Provenance, Treatment
from .state import random_moved, random_state
from .tree import Tree


class Recorder(Provenance, TorchFunctionMode):
    """One run of the model. `observer` is given where sites and the flow of data are wanted, too.

    The stack holds the frames of the modules that run; None on top means that what runs is nobody's
    own forward (a torch layer's inside, a hook), which is not recorded."""

    def __init__(self, tree: Tree, treatment: Treatment, observer: Observer | None = None) -> None:
        TorchFunctionMode.__init__(self)
        Provenance.__init__(self, tree, treatment)
        self.observer = observer
        self.stack: list[Frame | None] = [None]
        self.frames: list[Frame] = []
        self.seen_running = 0  # > 0 while a call that was seen runs
        self.changed_modules = False  # attributes of a module were assigned or changed
        self._kinds: dict[int, tuple[Any, Kind | None]] = {}
        self._layer_kinds: dict[type, Kind | None] = {}
        self._data_shaped: set[int] = set()
        self._random: Any = None

    # ---- the stack

    @property
    def top(self) -> Frame | None:
        return self.stack[-1]

    @property
    def reading(self) -> bool:
        """Whether what runs is code of a forward that is being recorded."""
        return self.stack[-1] is not None and not self.seen_running and self.stack[-1].recording

    @contextmanager
    def silent(self) -> Iterator[None]:
        """What runs inside is not recorded."""
        self.stack.append(None)
        try:
            yield
        finally:
            self.stack.pop()

    @contextmanager
    def running(self) -> Iterator[None]:
        """What runs inside belongs to a call that was seen."""
        self.seen_running += 1
        try:
            yield
        finally:
            self.seen_running -= 1

    def check_random(self) -> None:
        """Blame the frame on top where a generator moved in a way that no call of torch shows."""
        now = random_state()
        reason = None if self._random is None else random_moved(self._random, now)
        if reason is not None and self.top is not None:
            self.fault(self.top, reason, definition(self.top.module))
        self._random = now

    # ---- calls

    def kind_of(self, function: Any) -> Kind | None:
        found = self._kinds.get(id(function))
        if found is None or found[0] is not function:
            found = self._kinds[id(function)] = (function, recognise(function=function))
        return found[1]

    def layer_kind(self, module: nn.Module) -> Kind | None:
        """The kind that claims this layer, looked up once a class."""
        cls = type(module)
        if "forward" in module.__dict__:
            return None
        if cls not in self._layer_kinds:
            self._layer_kinds[cls] = recognise(module=module)
        return self._layer_kinds[cls]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        frame = self.top
        if frame is None or self.seen_running:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            with self:
                return OPENED_ATTENTION(*args, **kwargs)
        return self.call(frame, func, tuple(args), kwargs, lambda: func(*args, **kwargs))

    def call(
        self, frame: Frame, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]
    ) -> Any:
        """Run a call of the user's code, and record it where it makes tensors or changes them."""
        name = getattr(func, "__name__", str(func))
        if name in ("__get__", "__set__", "__delete__"):
            attribute = func.__self__.__name__
            if name == "__set__" and attribute == "requires_grad":
                func, name = Tensor.requires_grad_, "requires_grad_"
            elif name != "__get__":
                self.fault(frame, f"sets .{attribute} of a tensor")
            if name == "__get__":
                func, name, args = getattr, attribute, (args[0], attribute)
        if name in READS:
            self.fault(frame, READS[name])
        if (
            self._data_shaped
            and name in SHAPE_READS
            and any(id(t) in self._data_shaped for t in tensors(args))
        ):
            self.fault(frame, "uses a size that depends on a tensor's values")
        before = [(operand, _version(operand)) for operand in (*tensors(args), *tensors(kwargs))]
        with self.running():
            result = run()
            if isinstance(result, Tensor):
                result = self._distinct(result, before)
        if next(tensors(result), None) is None:
            self._no_tensors(frame, func, name, args, kwargs, result, bool(before))
            return result
        self._shaped_by_data(name, args, result)
        self.note(frame, func, name, args, kwargs, result)
        return result

    def _distinct(self, result: Tensor, before: list[tuple[Tensor, int]]) -> Tensor:
        """Results that *are* an operand, unchanged (`x.contiguous()`), as a tensor of their own: whether
        they are depends on the mode and the layout, and what was recorded must not."""
        for operand, version in before:
            if result is operand and _version(operand) == version:
                if result.requires_grad and not torch.is_grad_enabled():
                    return result
                alias = result.view_as(result) if not result.is_inference() else result
                if self.observer is not None:
                    self.observer.same(result, alias)
                return alias
        return result

    def _no_tensors(
        self,
        frame: Frame,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        touched: bool,
    ) -> None:
        """Calls that return no tensor: questions are answered by constants, changes are recorded."""
        if result is None and touched and name != "grad":
            self.note(frame, func, name, args, kwargs, None)
        elif isinstance(result, float | complex) and touched:
            self.fault(frame, f"reads a tensor's value with {name}")

    def _shaped_by_data(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        by_data = name in DATA_SHAPED or (name == "where" and len(args) == 1)
        if name == "__getitem__" and not by_data:
            by_data = any(index.dtype in (torch.bool, torch.uint8) for index in tensors(args[1:]))
        if by_data or (
            self._data_shaped and any(id(operand) in self._data_shaped for operand in tensors(args))
        ):
            self._data_shaped.update(id(tensor) for tensor in tensors(result))
            self._kept.extend(tensors(result))

    def note(
        self, frame: Frame, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        """Record a call in its frame, and what it says about sites and the flow of data."""
        line = self.line(frame)
        if frame.recording:
            frame.hint(_variables(frame, self.outermost))
        kind = self.kind_of(func)
        site: SiteName | None = None
        if kind is not None:
            site = self._site(frame, kind, func, name, args, kwargs, result, line)
        if self.observer is not None:
            id_ = _site_id(frame, site) if site is not None else None
            self.observer.operator(frame, name, args, kwargs, result, id_)
        self.made_in(frame, result)
        if frame.recording:
            target, given, named = normal_form(func, name, args, kwargs)
            if (real := made_from_numpy(func, args, kwargs)) is not None:
                frame.constant(result, real)
                return
            try:
                spelled = frame.spelled(given), frame.spelled(named)
            except (OddValue, Foreign) as error:
                spelled_again = self.with_constants(frame, error, given, named, f"passes {name}")
                if spelled_again is None:
                    return
                spelled = spelled_again
            frame.record("call_function", target, *spelled, result, line, site if site and site.ids else None)

    def _site(
        self,
        frame: Frame,
        kind: Kind,
        func: Any,
        name: str,
        args: Any,
        kwargs: Any,
        result: Any,
        line: str | None,
    ) -> SiteName:
        number = frame.number(name)
        site = SiteName((), name, number)
        if self.observer is None:
            return SiteName((_site_id(frame, site),), name, number)
        with self.running():
            ids = self.observer.site(
                kind, Call(args, kwargs, function=func), result, id_=_site_id(frame, site), owner=frame.path,
                op=name, number=number, frame=frame, source=line,
            )  # fmt: skip
        return SiteName(ids, name, number)


def _variables(frame: Frame, until: FrameType | None) -> Mapping[str, Any]:
    """The local variables of the code that runs in this forward."""
    running: FrameType | None = sys._getframe(1)
    while running is not None and running is not until:
        if running.f_code.co_filename == frame.file or running.f_code is OPENED_ATTENTION.__code__:
            return running.f_locals
        running = running.f_back
    return {}


def _site_id(frame: Frame, site: SiteName) -> str:
    return f"{frame.path}.{site.function}_{site.number}".lstrip(".")


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
