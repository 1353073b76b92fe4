"""One sampled call, timed: exact, sampled, and the limit, the exact operation on the kept part alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..capture.nests import rebuilt, tensors
from ..capture.rng import kept_random_state
from ..kinds import Call, Operation, Refusal
from ..kinds._convolution import Convolution
from ..passes.copying import deep_copy
from ..passes.layers import FunctionSite
from ..passes.parts import Sites
from .calls import SampledCall, layer_tensors, real
from .limit import limit
from .timing import Arm, Budget, Ratio, Timing, in_turn, waiting

Form = Literal["contiguous", "channels_last"]
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Side:
    """One side of a comparison, in every memory format that was tried; `form` is the fastest."""

    timings: Mapping[Form, Timing]

    @property
    def form(self) -> Form:
        return min(self.timings, key=lambda form: self.timings[form].median)

    @property
    def best(self) -> Timing:
        return self.timings[self.form]


@dataclass(frozen=True)
class CallTimes:
    """Seconds of forward and backward of one call: exact, sampled (`ours`), and at the limit."""

    exact: Side
    ours: Side
    limit: Side | None

    @property
    def ratio(self) -> Ratio:
        """Exact over ours, each in its best form: above 1 sampling pays."""
        return Ratio.of(self.exact.best, self.ours.best)

    @property
    def limit_ratio(self) -> Ratio | None:
        """Exact over the limit: what there is to win."""
        return Ratio.of(self.exact.best, self.limit.best) if self.limit else None

    @property
    def reached(self) -> float | None:
        """The share of the limit's speed that ours has: `ratio` over `limit_ratio`."""
        at_limit = self.limit_ratio
        return self.ratio.median / at_limit.median if at_limit else None


def time_call(
    call: SampledCall,
    budget: Budget,
    *,
    limit: bool = True,
    forms: bool = True,
    tick: Callable[[float], object] | None = None,
) -> CallTimes:
    """The call timed exact, sampled and at its limit, in turn, on random operands of its shapes.

    Forward and backward of the call alone, gradients of its inputs and weights as training wants them.
    `forms` tries convolutions in both memory formats, `limit=False` leaves the limit out. The exact side
    is the call as it was written, with torch's own backward. The global random state is kept."""
    with kept_random_state(), torch.inference_mode(False), torch.enable_grad():
        sides: dict[tuple[str, Form], Arm] = {}
        for form in _forms(call) if forms else _forms(call)[:1]:
            made = _Made.of(call, form)
            plain = made.plain(call, form)
            sides["exact", form] = _arm(call, plain, partial(plain.sites.kind.exact, plain.call))
            sides["ours", form] = _arm(
                call, made, partial(made.module.forward, *made.call.args, **made.call.kwargs)
            )
            if limit:
                sides["limit", form] = limit_arm(made)
        timings = in_turn(sides, budget, wait=waiting(call.device), tick=tick)
    found = {
        name: Side({form: timing for (side, form), timing in timings.items() if side == name})
        for name in ("exact", "ours", "limit")
    }
    return CallTimes(found["exact"], found["ours"], found["limit"] if limit else None)


def _forms(call: SampledCall) -> list[Form]:
    """The memory formats to try, that of the model first. Only convolutions have two worth trying."""
    planes = [
        one for one in call.contracted if isinstance(one.bilinear, Convolution) and len(one.left) in LAST
    ]
    if not planes:
        return ["contiguous"]
    activations = [t for t in tensors((call.args, dict(call.kwargs))) if t.is_meta and t.dim() in LAST]
    last = any(t.is_contiguous(memory_format=LAST[t.dim()]) and not t.is_contiguous() for t in activations)
    return ["channels_last", "contiguous"] if last else ["contiguous", "channels_last"]


@dataclass(frozen=True)
class _Made:
    """A call made anew in one memory format: real tensors, and a layer of its own where that differs."""

    module: nn.Module
    sites: Sites
    call: Call
    wanted: tuple[Tensor, ...]

    @classmethod
    def of(cls, call: SampledCall, form: Form) -> _Made:
        given = form == _forms(call)[0]
        module = _layer(call.module, None if given else form)

        def remade(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            tensor = real(leaf, call.device) if leaf.is_meta else leaf
            convert = not given and (leaf.is_meta or isinstance(leaf, nn.Parameter))
            return _in_form(tensor, form=form) if convert else tensor

        args, kwargs = rebuilt((call.args, dict(call.kwargs)), remade)
        return cls._with(module, args, kwargs, call.modes.grad)

    @classmethod
    def _with(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], grad: bool) -> _Made:
        site: Any = module
        function = site.function if isinstance(module, FunctionSite) else None
        made = Call(args, kwargs, None if function else module, function)
        everything = [*tensors((args, kwargs)), *layer_tensors(module)]
        wanted = tuple({id(t): t for t in everything if t.requires_grad}.values()) if grad else ()
        return cls(module, site._fxapprox, made, wanted)

    def plain(self, call: SampledCall, form: Form) -> _Made:
        """The same call of a layer whose weights lie as an exact layer's do, not as gathering wants them."""
        if isinstance(self.module, FunctionSite) or all(map(_usual, self.module.parameters())):
            return self
        module = deep_copy(self.module)
        for parameter in module.parameters():
            if not _usual(parameter):
                changed = _in_form(parameter, form=form)
                parameter.data = changed.data if _usual(changed) else changed.data.contiguous()
        return _Made._with(module, self.call.args, dict(self.call.kwargs), call.modes.grad)


def _usual(tensor: Tensor) -> bool:
    """Whether a tensor lies in one of torch's memory formats."""
    last = tensor.dim() in LAST and tensor.is_contiguous(memory_format=LAST[tensor.dim()])
    return last or tensor.is_contiguous()


def _layer(module: nn.Module, form: Form | None) -> nn.Module:
    """The layer in this memory format (None: in its own), with a weight that was computed before its forward
    (torch's older `weight_norm`) as a leaf; the layer itself where that changes nothing."""
    computed = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    if isinstance(module, FunctionSite) or (form is None and not computed):
        return module
    replica = deep_copy(module)
    for name, value in computed.items():
        vars(replica)[name] = value.detach().clone().requires_grad_(value.requires_grad)
    for place in (*replica.parameters(), *(vars(replica)[name] for name in computed)):
        place.data = place.data if form is None else _in_form(place.data, form=form)
    return replica


def _in_form(tensor: Tensor, *, form: Form) -> Tensor:
    """The tensor as a leaf in this memory format; one without planes as it is."""
    if tensor.dim() not in LAST:
        return tensor
    wanted = LAST[tensor.dim()] if form == "channels_last" else torch.contiguous_format
    changed = tensor.detach().contiguous(memory_format=wanted)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(changed, requires_grad=tensor.requires_grad)
    return changed.requires_grad_(tensor.requires_grad)


def _arm(call: SampledCall, made: _Made, run: Callable[[], Any]) -> Arm:
    """Forward and backward of `run`, in the modes that the call ran in."""
    plain = call.modes.grad and not any(call.modes.autocast.values())

    def forward() -> Any:
        if plain:
            return run()
        with call.modes.entered():
            return run()

    grads = [real(result.detach(), result.device) for result in _trained(forward())]

    def arm() -> None:
        results = _trained(forward())
        if results and made.wanted:
            torch.autograd.grad(results, made.wanted, grads, allow_unused=True)

    return arm


def _trained(result: Any) -> list[Tensor]:
    return [tensor for tensor in tensors(result) if tensor.requires_grad]


# the limit


def limit_arm(made: _Made) -> Arm:
    """The exact operations of the call's sampled products on operands that are cut to k pairs already.

    Nothing is scored, drawn, gathered or put back, and what lies around the products (a softmax between
    two of them) is left out."""
    runs = [
        limit(operation, made.sites.parts[part].choice, bool(made.wanted))
        for part, operation in _operations(made)
        if part in made.sites.parts
    ]

    def arm() -> None:
        for run in runs:
            run()

    return arm


def _operations(made: _Made) -> list[tuple[str, Operation]]:
    met: list[tuple[str, Operation]] = []

    def product(part: str, operation: Operation | Refusal) -> Tensor:
        if isinstance(operation, Refusal):
            return torch.empty(0)
        met.append((part, operation))
        result = operation.bilinear.forward(operation.left, operation.right, operation.bias)
        return operation.finish(result) if operation.finish else result

    made.sites.kind.run(made.call, product)
    return met
