"""A kind: recognises a call, and says which bilinear product it is. All else is shared.

A call (of a module or of a function) is brought to a normal form, an `Operation`: a `Bilinear`
product with its two operands, and what is done to its result. Facts (pairs, FLOPs), the sampled run
and its gradients all follow from the normal form, so a kind holds no sampling code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..registry import Registry
from ..sites import ProductName


@dataclass(frozen=True)
class Call:
    """One call as it happens, with real or fake tensors: of a layer (`module`), or of a function."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    function: Callable[..., Any] | None = None


Operand = Literal[0, 1]
"""Which of a product's two operands: 0 the first, 1 the second."""


class Bilinear(ABC):
    """An exact product y = left · right (+ bias) with its two gradients and its sampled dimensions.

    Implementations are frozen dataclasses that hold the geometry (stride, padding, groups …); most
    derive from `AxisBilinear` (kinds/_bilinear.py), which leaves only the first five methods to write.
    Operands of a product, in order: forward (left, right); grad_input (grad, right); grad_weight
    (grad, left). Every method must work on shortened operands, too: that is how a sampled product
    is computed. Methods run without autograd and outside autocast."""

    @abstractmethod
    def forward(self, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor: ...

    @abstractmethod
    def grad_left(self, grad: Tensor, right: Tensor, left_shape: tuple[int, ...]) -> Tensor: ...

    @abstractmethod
    def grad_right(self, grad: Tensor, left: Tensor, right_shape: tuple[int, ...]) -> Tensor: ...

    @abstractmethod
    def grad_bias(self, grad: Tensor) -> Tensor: ...

    def gradients(
        self, grad: Tensor, left: Tensor, right: Tensor | None, right_shape: tuple[int, ...], bias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """The gradients of the left operand, where the right one is given, of the right one, and of the bias
        where it is wanted."""
        grad_left = None if right is None else self.grad_left(grad, right, tuple(left.shape))
        grad_right = self.grad_right(grad, left, right_shape)
        return grad_left, grad_right, self.grad_bias(grad) if bias else None

    @abstractmethod
    def flops(self, left: tuple[int, ...], right: tuple[int, ...]) -> int:
        """FLOPs of one product, 2 per multiply-add (the three products cost the same)."""

    @abstractmethod
    def sizes(
        self, product: ProductName, left: tuple[int, ...], right: tuple[int, ...]
    ) -> tuple[int, int, str]:
        """(groups, pairs per group, what is contracted in words) from the full operands' shapes."""

    @abstractmethod
    def energy(self, product: ProductName, operand: Operand, tensor: Tensor) -> Tensor:
        """Sums of squares `[groups, pairs]` of one operand over all but the sampled dimension, summed
        in float32 for half types. Non-finite and overflowing sums are the caller's to handle."""

    @abstractmethod
    def take(self, product: ProductName, operand: Operand, tensor: Tensor, index: Tensor) -> Tensor:
        """One operand cut to the pairs `index` `[groups, k]`; the memory format is kept."""

    @abstractmethod
    def scale(self, product: ProductName, operand: Operand, tensor: Tensor, factors: Tensor) -> Tensor:
        """One operand (whole or cut) with every pair multiplied by its factor `[groups, pairs]`."""

    @abstractmethod
    def put(
        self, product: ProductName, operand: Operand, full: Tensor, kept: Tensor, index: Tensor, unique: bool
    ) -> None:
        """Write the kept pairs over their places in `full` (dense): the reverse of `take`. Pairs that occur
        several times in `index` (`unique` False) are added up, and to what is there."""

    @abstractmethod
    def spread(
        self, product: ProductName, operand: Operand, kept: Tensor, selected: tuple[Tensor, bool],
        shape: tuple[int, ...], strides: tuple[int, ...],
    ) -> Tensor:  # fmt: skip
        """The kept pairs at their places in a new, dense operand of `shape`, zeros elsewhere, in the memory
        format of `strides`: `put` into zeros, in fewer passes. `selected` is their index `[groups, k]`,
        ascending, and whether it is unique: pairs that occur several times are added up."""

    @abstractmethod
    def center(self, left: Tensor) -> Tensor:
        """The mean of the left operand over everything but the sampled dimension, as a short left
        operand whose product broadcasts over y (a linear layer: one row; a convolution: one plane
        per channel; a batched matmul: one row per batch)."""

    @abstractmethod
    def center_grad(self, grad: Tensor, left_shape: tuple[int, ...]) -> Tensor:
        """The gradient of the left operand, or what broadcasts to it, from that of `center(left)`."""


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
    """Why a recognised call cannot be sampled: a sentence with the values. `flops` is one product's;
    the operands' shapes are for tables."""

    reason: str
    flops: int
    left: tuple[int, ...] = ()
    right: tuple[int, ...] = ()


ProductRunner = Callable[[str, "Operation | Refusal"], Tensor]


class Kind(ABC):
    """A family of operations.

    `modules`: classes whose *own* forward is the operation (a subclass that overrides `forward` is
    opened by the tracer instead). `functions`: every spelling of the operation as a function.
    `opt_in`: sampled only where a rule names the kind. `gathered`: the dimension of a layer's `weight` that
    its forward product cuts, where it is worth while to have it outermost in memory. `matrix`: its layer,
    called with one matrix x, computes x · weightᵀ + bias."""

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for `fxapprox inspect` and the docs
    modules: ClassVar[tuple[type[nn.Module], ...]] = ()
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()
    opt_in: ClassVar[bool] = False
    gathered: ClassVar[int | None] = None
    matrix: ClassVar[bool] = False

    @abstractmethod
    def run(self, call: Call, product: ProductRunner) -> Any:
        """The call's result, with every contraction in it done by `product(part, operation)`.

        `part` is "" where the call holds one product. The same method serves analysis (a `product`
        that takes notes and computes exactly) and training (one that samples). A `product` that is
        handed a Refusal only takes note: its result is not used, the call runs as it was written."""

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        """Whether the layer's own forward is this operation: its class inherits `forward` from a class of
        the kind. Parametrized layers do, subclasses with a forward of their own do not, nor layers that
        had one set on the instance."""
        if "forward" in module.__dict__:
            return False
        return any(isinstance(module, base) and type(module).forward is base.forward for base in cls.modules)

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        """Small random calls in every form that the kind knows, for `fxapprox.testing.check_kind`.

        Operands that can need a gradient come as leaves that do; the caller seeds torch."""
        return iter(())

    def exact(self, call: Call) -> Any:
        """The call as it was written, whatever class the layer has been given since."""
        if call.function is not None:
            return call.function(*call.args, **call.kwargs)
        forward = next(base.forward for base in self.modules if isinstance(call.module, base))
        return forward(call.module, *call.args, **call.kwargs)


class OneProduct(Kind):
    """A kind whose call is one product: it only says which."""

    @abstractmethod
    def operation(self, call: Call) -> Operation | Refusal: ...

    def run(self, call: Call, product: ProductRunner) -> Any:
        operation = self.operation(call)
        result = product("", operation)
        return self.exact(call) if isinstance(operation, Refusal) else result


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
    """The kind that claims this layer or function, None where no kind does."""
    for cls in kinds.all().values():
        if module is not None and cls.claims(module):
            return cls()
        if function is not None and any(function is known for known in cls.functions):
            return cls()
    return None
