"""A kind: recognises a call, and says which bilinear product it is. All else is shared.

A call (of a module or of a function) is brought to a normal form, an `Operation`: a `Bilinear`
product with its two operands, and what is done to its result. Facts (pairs, FLOPs), the sampled run
and its gradients all follow from the normal form, so a kind holds no sampling code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from ..policies import Selection
from ..registry import Registry
from ..sites import ProductName


@dataclass(frozen=True)
class Call:
    """One call as it happens, with real or fake tensors: of a layer (`module`), or of a function."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    function: Callable[..., Any] | None = None


class Bilinear(ABC):
    """An exact product y = left · right (+ bias) with its two gradients and its sampled dimensions.

    Implementations are frozen dataclasses that hold the geometry (stride, padding, groups …).
    Operands of a product, in order: forward (left, right); grad_input (grad, right); grad_weight
    (grad, left). Every method must work on shortened operands, too: that is how a sampled product
    is computed."""

    @abstractmethod
    def forward(self, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor: ...

    @abstractmethod
    def grad_left(self, grad: Tensor, right: Tensor, left_shape: tuple[int, ...]) -> Tensor: ...

    @abstractmethod
    def grad_right(self, grad: Tensor, left: Tensor, right_shape: tuple[int, ...]) -> Tensor: ...

    @abstractmethod
    def grad_bias(self, grad: Tensor) -> Tensor: ...

    @abstractmethod
    def sizes(self, product: ProductName, left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, int, str]:
        """(groups, pairs per group, what is contracted in words) from the full operands' shapes."""

    @abstractmethod
    def flops(self, left: tuple[int, ...], right: tuple[int, ...]) -> int:
        """FLOPs of one product, 2 per multiply-add (the three products cost the same)."""

    @abstractmethod
    def norms(self, product: ProductName, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Frobenius norms `[groups, pairs]` of both operands over all but the sampled dimension."""

    @abstractmethod
    def take(
        self, product: ProductName, first: Tensor, second: Tensor, selection: Selection
    ) -> tuple[Tensor, Tensor]:
        """Both operands cut to the kept pairs; the scale is multiplied into the smaller of them."""


@dataclass(frozen=True)
class Operation:
    """A call in normal form: the call's result is `finish(bilinear.forward(left, right, bias))`.

    `left` and `right` may be differentiable views or casts of what the user passed. `weight` says
    whether `right` is the layer's weight rather than an activation."""

    bilinear: Bilinear
    left: Tensor
    right: Tensor
    bias: Tensor | None = None
    finish: Callable[[Tensor], Tensor] | None = None
    weight: bool = True


@dataclass(frozen=True)
class Refusal:
    """Why a recognised call cannot be sampled: a sentence with the values. `flops` is one product's."""

    reason: str
    flops: int


ProductRunner = Callable[[str, "Operation | Refusal"], Tensor]


class Kind(ABC):
    """A family of operations.

    `modules`: classes whose *own* forward is the operation (a subclass that overrides `forward` is
    opened by the tracer instead). `functions`: every spelling of the operation as a function.
    `opt_in`: sampled only where a rule names the kind."""

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for `fxapprox inspect` and the docs
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    opt_in: ClassVar[bool] = False

    @abstractmethod
    def run(self, call: Call, product: ProductRunner) -> Any:
        """The call's result, with every contraction in it done by `product(part, operation)`.

        `part` is "" where the call holds one product. The same method serves analysis (a `product`
        that takes notes and computes exactly) and training (one that samples)."""


class OneProduct(Kind):
    """A kind whose call is one product: it only says which."""

    @abstractmethod
    def operation(self, call: Call) -> Operation | Refusal: ...

    def run(self, call: Call, product: ProductRunner) -> Any:
        return product("", self.operation(call))


kinds: Registry[type[Kind]] = Registry("kind", "fxapprox.kinds")
K = TypeVar("K", bound=type[Kind])


def kind(name: str, *, summary: str) -> Callable[[K], K]:
    """Register a kind under `name`."""

    def register(cls: K) -> K:
        cls.name, cls.summary = name, summary
        kinds.add(name, cls)
        return cls

    return register


def recognise(*, module: nn.Module | None = None, function: Callable[..., Any] | None = None) -> Kind | None:
    """The kind that claims this layer or function, None where no kind does.

    A layer is claimed when its class *inherits* `forward` from a class of the kind: parametrized
    layers are, subclasses with a forward of their own are not."""
    for cls in kinds.all().values():
        if module is not None and any(
            isinstance(module, base) and type(module).forward is base.forward for base in cls.modules
        ):
            return cls()
        if function is not None and any(function is known for known in cls.functions):
            return cls()
    return None
