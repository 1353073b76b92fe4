"""Layers and function calls that sample their products in training and are exact in evaluation.

A layer is changed in place: its class becomes a generated subclass of its own class, so it remains an
instance of it, with the parameters, hooks and state_dict it had. A function call becomes a small
module without parameters. Both hold one plain attribute, `_fxapprox`, with all there is to know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..choices import Choice
from ..choices import Sampled as SampledProduct
from ..errors import RequestError
from ..kinds import Call, Kind, Operation, Refusal, recognise
from ..policies._nodes import Derived
from ..problems import raise_problems
from ..sampling.clock import Clock
from ..sampling.memory import Pace, RowMemory
from ..sampling.nodes import node_choice, node_product
from ..sampling.product import sampled_product
from ..sampling.streams import Draw, SiteStream
from ..schedules import Schedule
from ..sites import PRODUCTS
from ..syntax import read_choice, spell_choice

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
M = TypeVar("M", bound=nn.Module)


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
    """The sites of one call, one a part; a part of the call without an entry stays exact."""

    kind: Kind
    parts: Mapping[str, Part]

    @classmethod
    def of(cls, kind: Kind, site: str, choices: Mapping[str, Choice]) -> Sites:
        """`site` is the call's id; a named part's is `site.part`."""
        ids = {part: f"{site}.{part}" if part else site for part in choices}
        return cls(kind, {part: Part.of(ids[part], choice) for part, choice in choices.items()})

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


class SiteModule(nn.Module):
    """A module that holds sites: lets them hear when the weight is loaded, moved or cast."""

    _fxapprox: Sites

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fxapprox.forget()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._fxapprox.forget()
        return super()._apply(*args, **kwargs)


class Sampled(SiteModule):
    """The mark of a layer whose products are sampled; comes before the layer's own class."""

    _fxapprox_base: ClassVar[type[nn.Module]]

    def __init_subclass__(cls) -> None:
        """Keep the generated class from registering itself where a user's base class lists subclasses."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training and not self._fxapprox.evaluates:
            return super().forward(*args, **kwargs)
        # a parametrized weight is computed once however often the kind looks at it: spectral norm's
        # power iteration moves on at every look
        if "parametrizations" in self._modules:
            with parametrize.cached():
                return self._sampled(Call(args, kwargs, module=self))
        return self._sampled(Call(args, kwargs, module=self))

    def _sampled(self, call: Call) -> Any:
        return self._fxapprox.run(call) if self.training else self._fxapprox.evaluate(call)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), str(self._fxapprox))))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The base's own reduction, whose result is given the generated class again once rebuilt."""
        reduction = super().__reduce_ex__(protocol)
        if isinstance(reduction, str) or "_fxapprox_base" not in vars(type(self)):
            return reduction  # a singleton by name, or a class derived from ours that has its own ways
        function, arguments, *state = reduction
        arguments = tuple(self._fxapprox_base if item is type(self) else item for item in arguments)
        return (_rebuilt, (self._fxapprox_base, function, arguments), *state)


@functools.cache
def sampled_class(base: type[nn.Module]) -> type[nn.Module]:
    """The class `Sampled<Base>`, a subclass of `base`; always the same one."""
    names = {"_fxapprox_base": base, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(f"Sampled{base.__name__}", (Sampled, base), names)


def _rebuilt(
    base: type[nn.Module], function: Callable[..., nn.Module], arguments: tuple[Any, ...]
) -> nn.Module:
    module = function(*arguments)
    module.__class__ = sampled_class(base)  # type: ignore[arg-type]
    return module


def sample_module(module: nn.Module, *, site: str, kind: Kind, choice: Choice) -> None:
    """Make a layer sample its products, in place: its class becomes a generated subclass of its class.

    In training its forward does what `choice` says, in evaluation what it did. A layer that samples
    already gets the new choice and begins its draws anew."""
    module.__dict__["_fxapprox"] = Sites.of(kind, site, {"": choice})
    if isinstance(module, Sampled):
        return
    cls = type(module)
    if "parametrizations" in module._modules and len(cls.__bases__) == 1:
        # torch made this class for this one module, to hold the properties of its parametrized tensors,
        # and removes it again with the last of them: it must stay the outermost
        own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, (sampled_class(cls.__bases__[0]),), own)
    else:
        module.__class__ = sampled_class(cls)  # type: ignore[arg-type]


def sampling_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Every layer and function call of the model that samples, each once; the calls in containers, too,
    which are no children there."""
    seen: set[int] = set()
    for module in model.modules():
        for held in (module, *(value for value in vars(module).values() if isinstance(value, nn.Module))):
            if isinstance(vars(held).get("_fxapprox"), Sites) and id(held) not in seen:
                seen.add(id(held))
                yield held


def sites_of(model: nn.Module) -> Iterator[Sites]:
    """What the model's layers and calls sample, see `sampling_modules`."""
    for module in sampling_modules(model):
        yield vars(module)["_fxapprox"]


def unsample(model: M) -> M:
    """The model itself, with every site exact again: layers are of the class they had, function calls
    run the function."""
    for module in list(sampling_modules(model)):
        if isinstance(module, FunctionSite):
            module._fxapprox = Sites(module._fxapprox.kind, {})
            continue
        del module.__dict__["_fxapprox"]
        cls = type(module)
        if "_fxapprox_base" in vars(cls):
            module.__class__ = cls._fxapprox_base  # type: ignore[attr-defined]
        else:  # the class that torch made for a parametrized layer, see `sample_module`
            own = {
                name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")
            }
            module.__class__ = type(cls.__name__, (cls.__bases__[0]._fxapprox_base,), own)  # type: ignore[attr-defined]
    return model


def sampled(module: M, *, site: str, **keys: Any) -> M:
    """The layer itself, made to sample its products as the keys say: the keys of a rule, `policy`,
    `keep`, `min_k`, `scope`, `center`, `memory` and the policy's own options, or a table per product.

    >>> sampled(nn.Linear(784, 1024), site="fc1", policy="topk", keep=0.5, scope="forward")

    Raises RequestError for a layer that no kind recognises, and for keys that no rule could have."""
    kind = recognise(module=module)
    if kind is None:
        raise RequestError(
            f"{type(module).__name__} is not a layer whose products can be sampled",
            where=f"site {site}",
            remedy="fxapprox inspect lists the kinds of layers that can",
        )
    choice = _choice(site, keys)
    if choice is not None:
        sample_module(module, site=site, kind=kind, choice=choice)
    return module


def _choice(site: str, keys: Mapping[str, Any]) -> Choice | None:
    choice, problems = read_choice(keys)
    raise_problems(problems, f"the options of site {site}")
    return choice


class FunctionSite(SiteModule):
    """A call of a function (`torch.matmul`, `F.linear` …) whose products are sampled in training.

    Stands as a child in the module whose forward holds the call, so that `.train()` and `.eval()`
    reach it; has no parameters and adds nothing to a state_dict."""

    def __init__(
        self, function: Callable[..., Any], *, site: str, kind: Kind, choices: Mapping[str, Choice]
    ) -> None:
        """`choices` by part; a call that holds one product has the part ""."""
        super().__init__()
        self.function = function
        self._fxapprox = Sites.of(kind, site, choices)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(args, kwargs, function=self.function)
        return self._fxapprox.run(call) if self.training else self._fxapprox.evaluate(call)

    def extra_repr(self) -> str:
        return f"{getattr(self.function, '__name__', self.function)}, {self._fxapprox}"


def sampled_function(
    function: Callable[..., Any],
    *,
    site: str,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    **keys: Any,
) -> FunctionSite:
    """A FunctionSite from the keys of a rule (see `sampled`); `parts` holds such keys for each product of
    a call with several: `parts={"scores": {"policy": "topk", "keep": 0.5}}`."""
    kind = recognise(function=function)
    if kind is None:
        name = getattr(function, "__name__", str(function))
        raise RequestError(
            f"{name} is not a function whose products can be sampled",
            where=f"site {site}",
            remedy="fxapprox inspect lists the kinds of functions that can",
        )
    read = {part: _choice(site, own) for part, own in ({"": keys} if parts is None else parts).items()}
    choices = {part: choice for part, choice in read.items() if choice is not None}
    return FunctionSite(function, site=site, kind=kind, choices=choices)
