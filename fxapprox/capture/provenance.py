"""Where tensors come from, which forwards cannot be captured for it, and which must be recorded together."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .facts import Foreign, OddValue
from .frames import Frame
from .lines import user_line
from .nests import tensors
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


class Provenance:
    """The book of one run: which forward made which tensor, what could not be captured and why."""

    def __init__(self, tree: Tree, treatment: Treatment) -> None:
        self.tree, self.treatment = tree, treatment
        self.faults: dict[str, Fault] = {}
        self.inline_wanted: set[str] = set()
        self.originals: set[int] = set()  # tensors of the user's model, of which this runs a copy
        self.existing: set[int] | None = None  # tensors from before a run on real ones
        self.outermost: FrameType | None = None
        self._maker: dict[int, Frame] = {}
        self._unseen: dict[int, str] = {}
        self._values_of: dict[int, Tensor] = {}  # of constants, where the trace holds fakes
        self._kept: list[Any] = []

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

    def made_in(self, frame: Frame, result: Any) -> None:
        """Remember in whose forward the tensors came to be."""
        for tensor in tensors(result):
            if id(tensor) not in self._maker:
                self._maker[id(tensor)] = frame
                self._kept.append(tensor)

    def with_constants(self, frame: Frame, error: Exception, given: Any, named: Any, what: str) -> Any:
        """Try again with tensors from outside the model kept as constants; None where it cannot be."""
        while isinstance(error, Foreign) and self.is_constant(error.tensor):
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

    def is_constant(self, tensor: Tensor) -> bool:
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


def _lineage(frame: Frame | None) -> list[Frame]:
    found = []
    while frame is not None:
        found.append(frame)
        frame = frame.parent
    return found
