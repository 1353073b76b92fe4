"""The recorder: sees every torch call of the user's code and writes it into the frame it belongs to."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode

from ..kinds import Call, Kind, recognise
from .calls import DATA_SHAPED, OPENED_ATTENTION, READS, SHAPE_READS, made_from_numpy, normal_form
from .facts import Foreign, OddValue, SiteName
from .frames import Frame
from .lines import definition, user_line
from .nests import tensors
from .observe import Observer
from .state import random_moved, random_state
from .tree import Tree


@dataclass(frozen=True)
class Fault:
    """Why a module's forward cannot be captured, and the user's line. `once`: a flag was set, as code that
    prepares itself in its first call does; it is no fault if the next call leaves it alone."""

    reason: str
    line: str | None = None
    once: bool = False


@dataclass
class Treatment:
    """How modules are met, by path: `opaque` ones keep their own forward (with the reason), `inline`
    ones are recorded in the forward of their parent."""

    opaque: dict[str, Fault] = field(default_factory=dict)
    inline: set[str] = field(default_factory=set)


class Recorder(TorchFunctionMode):
    """One run of the model. `observer` is given where sites and the flow of data are wanted, too.

    The stack holds the frames of the modules that run; None on top means that what runs is nobody's
    own forward (a torch layer's inside, a hook), which is not recorded."""

    def __init__(self, tree: Tree, treatment: Treatment, observer: Observer | None = None) -> None:
        super().__init__()
        self.tree, self.treatment, self.observer = tree, treatment, observer
        self.stack: list[Frame | None] = [None]
        self.frames: list[Frame] = []
        self.faults: dict[str, Fault] = {}
        self.inline_wanted: set[str] = set()
        self.seen_running = 0  # > 0 while a call that was seen runs
        self.originals: set[int] = set()  # tensors of the user's model, of which this runs a copy
        self.existing: set[int] | None = None  # tensors from before a run on real ones
        self.outermost: FrameType | None = None
        self._kinds: dict[int, tuple[Any, Kind | None]] = {}
        self._layer_kinds: dict[type, Kind | None] = {}
        self.changed_modules = False  # attributes of a module were assigned or changed
        self._maker: dict[int, Frame] = {}
        self._unseen: dict[int, str] = {}
        self._values_of: dict[int, Tensor] = {}  # of constants, where the trace holds fakes
        self._data_shaped: set[int] = set()
        self._kept: list[Any] = []
        self._random: Any = None

    # ---- the stack

    @property
    def top(self) -> Frame | None:
        return self.stack[-1]

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

    def line(self, frame: Frame | None) -> str | None:
        return user_line(frame.file if frame is not None else None, self.outermost)

    # ---- what cannot be captured

    def fault(self, frame: Frame | None, reason: str, line: str | None = None, *, once: bool = False) -> None:
        """The forward of this frame keeps being the user's own."""
        if frame is None:
            return
        frame.recording = False
        if frame.path not in self.treatment.opaque:
            self.faults.setdefault(frame.path, Fault(reason, line or self.line(frame), once))

    def want_inline(self, frame: Frame, fault: Fault) -> None:
        """Record this frame's calls in its parent's forward, next time; where that cannot be, a fault."""
        if frame.path in self.treatment.opaque or frame.path in self.faults:
            return
        parent = frame.parent
        if parent is None or parent.path in self.treatment.opaque or parent.path in self.faults:
            self.fault(frame, fault.reason, fault.line)
        else:
            frame.recording = False
            self.inline_wanted.add(frame.path)

    def cannot_spell(self, frame: Frame, error: OddValue | Foreign, what: str) -> None:
        """Deal with a value that the frame's text could not say."""
        if isinstance(error, OddValue):
            self.fault(frame, f"{what} a {type(error.value).__name__}, which a captured forward cannot hold")
            return
        tensor = error.tensor
        if id(tensor) in self._unseen:
            self.fault(frame, f"uses a tensor made by {self._unseen[id(tensor)]}")
        elif id(tensor) in self.originals:
            self.fault(frame, "uses a tensor that no copy of the model has: a closure holds the model itself")
        elif torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            self.fault(frame, "computes inside a transform of torch.func (vmap, grad, …)")
        elif (maker := self._maker.get(id(tensor))) is not None:
            self._join(frame, maker)
        elif self.tree.owns(tensor):
            self.want_inline(
                frame, Fault("uses a parameter or buffer of a module outside it", self.line(frame))
            )
        else:
            self.fault(frame, "uses a tensor that comes from outside the model")

    def _join(self, user: Frame, maker: Frame) -> None:
        """A tensor went from one frame to another by a way we do not see: make them one frame."""
        line = self.line(user)
        fault = Fault("uses a tensor of another module that is not among its arguments", line)
        above_user, above_maker = _lineage(user), _lineage(maker)
        for frame in above_user:
            if frame not in above_maker:
                self.want_inline(frame, fault)
        for frame in above_maker:
            if frame not in above_user and frame is not user:
                self.want_inline(frame, Fault("hands a tensor to another module past its results", line))
        user.recording = False

    def unseen(self, result: Any, what: str) -> None:
        """Tensors that came out of no call that was seen."""
        for tensor in tensors(result):
            self._unseen[id(tensor)] = what
            self._kept.append(tensor)

    def lifted(self, tensor: Tensor, real: Tensor) -> None:
        """`tensor` was made from data of Python's (`torch.FloatTensor([0.5])`), whose values `real` holds."""
        with unset_fake_temporarily():
            self._values_of[id(tensor)] = real.detach().clone()
        self._kept.append(tensor)

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
                spelled_again = self._with_constants(frame, error, given, named, f"passes {name}")
                if spelled_again is None:
                    return
                spelled = spelled_again
            frame.record("call_function", target, *spelled, result, line, site if site and site.ids else None)

    def made_in(self, frame: Frame, result: Any) -> None:
        """Remember in whose forward the tensors came to be."""
        for tensor in tensors(result):
            if id(tensor) not in self._maker:
                self._maker[id(tensor)] = frame
                self._kept.append(tensor)

    def _with_constants(self, frame: Frame, error: Exception, given: Any, named: Any, what: str) -> Any:
        """Try again with tensors from outside the model kept as constants; None where it cannot be."""
        while isinstance(error, Foreign) and self._is_constant(error.tensor):
            self.keep_constant(frame, error.tensor)
            try:
                return frame.spelled(given), frame.spelled(named)
            except (OddValue, Foreign) as next_error:
                error = next_error
        assert isinstance(error, OddValue | Foreign)
        self.cannot_spell(frame, error, what)
        return None

    def keep_constant(self, frame: Frame, tensor: Tensor) -> None:
        frame.constant(tensor, self._values_of.get(id(tensor), tensor))

    def _is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor existed before the model ran, or came from Python's data, and is no module's."""
        if id(tensor) in self._values_of:
            return True
        strange = (
            id(tensor) in self._unseen or id(tensor) in self._maker or id(tensor) in self.originals
            or self.tree.owns(tensor) or tensor.requires_grad
            or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        )  # fmt: skip
        if strange or type(tensor) not in (Tensor, nn.Parameter):  # fake: made while the model ran
            return False
        return self.existing is None or id(tensor) in self.existing

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


def _lineage(frame: Frame | None) -> list[Frame]:
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.parent
    return found


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version
