"""The sites of one call as they run: what is done there, and the state that a run keeps for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..choices import Choice
from ..choices import Sampled as SampledProduct
from ..kinds import Call, Kind, Operation, Refusal
from ..policies._nodes import Derived
from ..sampling.clock import Clock
from ..sampling.lane import Lane, lane
from ..sampling.memory import Pace, RowMemory
from ..sampling.nodes import node_choice, node_product
from ..sampling.product import sampled_product
from ..sampling.streams import Draw, SiteStream
from ..schedules import Schedule
from ..sites import PRODUCTS
from ..syntax import spell_choice

if TYPE_CHECKING:
    from ..run import Attachment

REASON = (
    "fxapprox: this layer has a state of its own that each step changes (a random stream, a memory of rows), "
    "which cannot be compiled"
)
SCHEDULED = (
    "fxapprox: the keep of this layer changes from step to step, which cannot be compiled "
    "(a keep that changes at a few steps can, once fxapprox.attach lets the optimizer count them)"
)


class Attachments(list["Attachment"]):
    """The optimizers that a site follows. Copies begin with none: theirs have parameters of their own."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachments:
        return Attachments()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Attachments, ()


@dataclass
class Part:
    """One product of a call: its site, what is done there, its random numbers, and its clock where a keep
    follows a schedule. `exact` where it keeps every pair, `random` where it draws. `kept` is what a node
    policy keeps here between steps, `memory` the rows that wait."""

    choice: Choice
    stream: SiteStream
    exact: bool
    random: bool
    kept: Derived | None = None
    memory: RowMemory | None = None
    clock: Clock | None = None
    attachments: Attachments = field(default_factory=Attachments)

    @classmethod
    def of(cls, site: str, choice: Choice) -> Part:
        treatments = [choice.treatment(product) for product in PRODUCTS]
        sampled = [how for how in treatments if isinstance(how, SampledProduct) and not how.keeps_all]
        schedules = [how.keep for how in sampled if isinstance(how.keep, Schedule)]
        nodes = node_choice(choice)
        return cls(
            choice,
            SiteStream(site),
            exact=not sampled,
            random=any(how.policy.random for how in sampled),
            kept=nodes[1].keeps() if nodes else None,
            memory=RowMemory() if any(how.memory for how in sampled) else None,
            clock=Clock(schedules) if schedules else None,
        )

    def run(self, operation: Operation, draw: Draw | None = None) -> Tensor:
        """The operation's result in training, by a draw that has been made already or a new one."""
        draw = draw or self.draw(operation.left)
        if node_choice(self.choice):
            return node_product(operation, self.choice, draw, self.kept)
        pace = None if self.memory is None else self.pace_of(operation.right)
        return sampled_product(operation, self.choice, draw, self.memory, pace)

    def evaluate(self, operation: Operation) -> Tensor:
        """The operation's result in evaluation, for a policy that does not evaluate exactly."""
        nodes = node_choice(self.choice)
        if nodes is None or nodes[1].evaluation == "exact":
            return _exact(operation)
        result = operation.bilinear.forward(operation.left, operation.right, operation.bias)
        return _finished(operation, nodes[1].evaluate(result))

    @property
    def evaluates(self) -> bool:
        """Whether evaluation is other than the exact model's."""
        nodes = node_choice(self.choice)
        return nodes is not None and nodes[1].evaluation == "own"

    def draw(self, left: Tensor) -> Draw:
        """The draw of this forward; without chance all are the same, and nothing is counted: a number
        that changes would make torch.compile start over at every step."""
        clock = self.clock
        if self.random or (clock is not None and not clock.driven):
            return self.stream.draw(left, clock)
        return Draw(self.site, seed=0, number=0, step=0 if clock is None else clock.now)

    def exact_at(self, step: int) -> bool:
        """Whether every product keeps all of its pairs at this step."""
        treatments = (self.choice.treatment(product) for product in PRODUCTS)
        waits = self.memory is not None and len(self.memory.slots) > 0  # rows that are still to be added
        return not waits and all(
            how.keep_at(step) == 1 for how in treatments if isinstance(how, SampledProduct)
        )

    @property
    def unfit_to_compile(self) -> str | None:
        """Why torch.compile must leave this part alone; None where it can trace it."""
        if self.random or self.memory is not None:
            return REASON
        clock = self.clock
        return SCHEDULED if clock is not None and (clock.slopes or not clock.driven) else None

    @property
    def site(self) -> str:
        return self.stream.site

    def state(self) -> dict[str, Any]:
        """What a resumed run needs of this part: ints, tensors and dicts of them, none shared with it."""
        holders = {"draws": self.stream if self.random else None, "memory": self.memory, "kept": self.kept}
        state: dict[str, Any] = {name: one.state() for name, one in holders.items() if one is not None}
        return state if self.clock is None else {**state, "step": self.clock.steps}

    def unfit(self, state: Mapping[str, Any]) -> str | None:
        """Why the state cannot be that of this part, None where it can."""
        own, given = set(self.state()), set(state)
        told = [f"{', '.join(sorted(given - own))} in the state, not in the model"] if given - own else []
        told += [f"{', '.join(sorted(own - given))} in the model, not in the state"] if own - given else []
        return "; ".join(told) or None

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.random:
            self.stream.load_state(state["draws"])
        if self.kept is not None:
            self.kept.load_state(state["kept"])
        if self.memory is not None:
            self.memory.load_state(state["memory"])
        if self.clock is not None:
            self.clock.set(state["step"])

    def pace_of(self, right: Tensor) -> Callable[[], Pace | None] | None:
        """What tells how the parameters learn that `right` is, or is made from; None where nobody knows.
        Of several optimizers that hold one the last attached counts."""
        if not self.attachments:
            return None
        parameters = _parameters(right)

        def pace() -> Pace | None:
            paces = (attachment.pace(one) for one in parameters for attachment in reversed(self.attachments))
            return next((found for found in paces if found is not None), None)

        return pace


def _parameters(tensor: Tensor) -> list[Tensor]:
    """The leaves that a tensor is computed from, the largest first: a parametrized weight's own, before a
    norm beside it that might learn at another rate."""
    if tensor.grad_fn is None:
        return [tensor]
    found: list[Tensor] = []
    nodes, seen = [tensor.grad_fn], {tensor.grad_fn}
    while nodes:
        node: Any = nodes.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        more = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= more
        nodes += more
    return sorted(found, key=lambda one: one.numel(), reverse=True)


@dataclass
class Sites:
    """The sites of one call, one a part; a part of the call without an entry stays exact. `lane` is a
    short way for calls of the commonest form."""

    kind: Kind
    parts: Mapping[str, Part]
    lane: Lane | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, kind: Kind, site: str, choices: Mapping[str, Choice]) -> Sites:
        """`site` is the call's id; a named part's is `site.part`."""
        ids = {part: f"{site}.{part}" if part else site for part in choices}
        parts = {part: Part.of(ids[part], choice) for part, choice in choices.items()}
        only = parts.get("") if kind.matrix else None
        return cls(kind, parts, lane=lane(only.choice, only.draw) if only else None)

    @property
    def evaluates(self) -> bool:
        """Whether evaluation is other than the exact call."""
        return any(part.evaluates for part in self.parts.values())

    def evaluate(self, call: Call) -> Any:
        """The call's result in evaluation."""
        return self.kind.run(call, self._evaluated) if self.evaluates else self.kind.exact(call)

    def forget(self) -> None:
        """The weight is another: loaded, moved or cast."""
        for part in self.parts.values():
            if part.kept is not None:
                part.kept.forget()

    def run(self, call: Call) -> Any:
        """The call's result in training; with keep = 1 the call as it was written, for the kind's normal form
        may add up in another order."""
        if all(part.exact for part in self.parts.values()):
            return self.kind.exact(call)
        if torch.compiler.is_compiling():
            for part in self.parts.values():
                if (reason := part.unfit_to_compile) is not None:
                    torch._dynamo.graph_break(msg=reason)  # what fullgraph=True reports
                    return torch.compiler.disable(self._run, reason=reason)(call)
        return self._run(call)

    def _run(self, call: Call) -> Any:
        if all(part.clock is None for part in self.parts.values()):
            return self.kind.run(call, self._product)
        # at which step the call is says whether it is sampled at all: asked before its normal form is made
        left = _first_input(call)
        draws = {name: part.draw(left) for name, part in self.parts.items()}
        if all(part.exact_at(draws[name].step) for name, part in self.parts.items()):
            return self.kind.exact(call)
        return self.kind.run(call, functools.partial(self._product, draws=draws))

    def _product(
        self, name: str, operation: Operation | Refusal, draws: Mapping[str, Draw] | None = None
    ) -> Tensor:
        if isinstance(operation, Refusal):
            return torch.empty(0)  # not looked at: the kind runs the call as it was written
        part = self.parts.get(name)
        return _exact(operation) if part is None else part.run(operation, draws[name] if draws else None)

    def _evaluated(self, name: str, operation: Operation | Refusal) -> Tensor:
        if isinstance(operation, Refusal):
            return torch.empty(0)
        part = self.parts.get(name)
        return _exact(operation) if part is None else part.evaluate(operation)

    def __str__(self) -> str:
        """What is done, as an extra_repr shows it."""
        texts = (
            (f"{name}: " if name else "") + ", ".join(f"{key}={_text(value)}" for key, value in keys.items())
            for name, part in self.parts.items()
            for keys in (spell_choice(part.choice),)
        )
        return "; ".join(texts)


def _exact(operation: Operation) -> Tensor:
    return _finished(operation, operation.bilinear.forward(operation.left, operation.right, operation.bias))


def _finished(operation: Operation, result: Tensor) -> Tensor:
    return operation.finish(result) if operation.finish else result


def _first_input(call: Call) -> Tensor:
    """The first tensor that is no parameter (as the bias of addmm is): it tells calls apart."""
    given = [*call.args, *call.kwargs.values()]
    listed = [item for value in given if isinstance(value, list | tuple) for item in value]  # of einsum
    tensors = [value for value in (*given, *listed) if isinstance(value, Tensor)]
    return next((tensor for tensor in tensors if not isinstance(tensor, nn.Parameter)), tensors[0])


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key}={_text(item)}" for key, item in value.items()) + ")"
    return str(value)
