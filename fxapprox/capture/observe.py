"""What one run of the model shows besides the frames: sites with their facts, and the flow of data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..kinds import Call, Kind, Operation, Refusal
from ..sites import PRODUCTS
from ._types import Edge, Operator, SiteCall
from .frames import Frame
from .nests import tensors
from .tree import Tree


@dataclass
class _Met:
    """A recognised product, as often as it was met."""

    first: SiteCall
    frame: Frame | None  # of a function site: the forward it stands in
    flops: int = 0
    calls: int = 0


@dataclass
class Observer:
    """Collects operators, edges and sites of one run."""

    tree: Tree
    operators: dict[str, Operator] = field(default_factory=dict)
    edges: dict[tuple[str, str], Edge] = field(default_factory=dict)
    met: dict[str, _Met] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)  # paths of layers
    used: set[int] = field(default_factory=set)  # ids of tensors that a call of a function took
    _computed: dict[int, str] = field(default_factory=dict)  # id → the parameter it is computed from
    _made_by: dict[int, str] = field(default_factory=dict)
    _kept: list[Tensor] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def operator(
        self, frame: Frame | None, name: str, args: Any, kwargs: Any, result: Any, site: str | None
    ) -> str:
        """Note that an operation ran: a node of its own, or the node of a site that runs again."""
        owner = frame.path if frame is not None else ""
        id_ = site if site is not None else self._fresh(owner, name)
        self.uses((args, kwargs))
        self._follow_parameters([*tensors(args), *tensors(kwargs)], result)
        self.add(id_, name, owner, args, kwargs, result, site)
        return id_

    def uses(self, values: Any) -> None:
        """Note the model's own tensors that a function is called with."""
        self.used.update(id(one) for one in tensors(values) if self.tree.owns(one))

    def layer(
        self, path: str, module: nn.Module, args: Any, kwargs: Any, result: Any, site: str | None
    ) -> None:
        """Note that a leaf module ran. Its node is its path; one that is no site has a node for each run,
        since an activation that serves three places of a block would tie them together."""
        again = site is None and path in self.operators
        id_ = site if site is not None else self._fresh("", path) if again else path
        self.add(id_, type_name(module), path, args, kwargs, result, site)

    def add(
        self, id_: str, op: str, owner: str, args: Any, kwargs: Any, result: Any, site: str | None
    ) -> None:
        for operand in (*tensors(args), *tensors(kwargs)):
            source = self._made_by.get(id(operand))
            if source is not None and source != id_:
                self.edges.setdefault((source, id_), Edge(source, id_))
        shape: tuple[int, ...] | None = None
        for made in tensors(result):
            shape = tuple(made.shape) if shape is None else shape
            self._made_by[id(made)] = id_
            self._kept.append(made)
            if made._base is not None and id(made._base) in self._made_by and made._base._version:
                self._made_by[id(made._base)] = id_  # written through a view
                self._kept.append(made._base)
        self.operators.setdefault(id_, Operator(id_, op, owner, site, shape))

    def _follow_parameters(self, operands: list[Tensor], result: Any) -> None:
        """What is computed from parameters alone (a standardised weight) goes by the name of the one that
        has as many elements."""
        if not operands or not all(id(o) in self._computed or self.tree.owns(o) for o in operands):
            return
        for made in tensors(result):
            names = [self._parameter(operand) for operand in operands if operand.numel() == made.numel()]
            if name := next(filter(None, names), None):
                self._computed[id(made)] = name

    def _parameter(self, tensor: Tensor) -> str | None:
        return self.tree.parameters.get(id(tensor)) or self._computed.get(id(tensor))

    def same(self, original: Tensor, alias: Tensor) -> None:
        """`alias` is handed on in place of `original`."""
        if (source := self._made_by.get(id(original))) is not None:
            self._made_by[id(alias)] = source
            self._kept.append(alias)
        if (name := self._parameter(original)) is not None:
            self._computed[id(alias)] = name
            self._kept.append(alias)

    def _fresh(self, owner: str, name: str) -> str:
        base = f"{owner}.{name}" if owner else name
        self._counts[base] = self._counts.get(base, 0) + 1
        return f"{base}:{self._counts[base]}"

    def site(
        self,
        kind: Kind,
        call: Call,
        result: Any,
        *,
        id_: str,
        owner: str,
        op: str,
        number: int | None,
        frame: Frame | None,
        source: str | None,
    ) -> tuple[str, ...]:
        """Note the products of a recognised call; the ids of those that can be sampled."""
        if call.module is not None:
            self.ran.add(owner)
        ids = []
        for part, operation, shape in _products(kind, call, result):
            site_id = f"{id_}.{part}" if part else id_
            facts = self._facts(operation, call, result, shape)
            found = SiteCall(
                id=site_id, kind=kind.name, owner=owner, op=op, call=number, part=part, operator=id_,
                calls=1, source=source, opt_in=kind.opt_in, **facts,
            )  # fmt: skip
            met = self.met.setdefault(site_id, _Met(found, frame))
            met.flops += found.flops
            met.calls += 1
            if found.refusal is None:
                ids.append(site_id)
        return tuple(ids)

    def _facts(
        self, operation: Operation | Refusal, call: Call, result: Any, shape: tuple[int, ...]
    ) -> dict[str, Any]:
        if isinstance(operation, Refusal):
            operands = list(tensors((call.args, dict(call.kwargs))))
            left = operands[0] if operands else None
            weight = getattr(call.module, "weight", None) if call.module is not None else None
            right = weight if isinstance(weight, Tensor) else operands[1] if len(operands) > 1 else None
            shapes = operation.left or _shape(left), operation.right or _shape(right)
            sizes: dict[str, tuple[int, int, str]] = {}
            flops, refusal, is_weight = operation.flops, operation.reason, call.module is not None
        else:
            left, right, refusal, is_weight = operation.left, operation.right, None, operation.weight
            shapes = tuple(left.shape), tuple(right.shape)
            sizes = {name: operation.bilinear.sizes(name, *shapes) for name in PRODUCTS}
            flops = operation.bilinear.flops(*shapes)
        on = torch.is_grad_enabled()
        trained = [p.requires_grad for p in call.module.parameters()] if call.module is not None else []
        return {
            "sizes": sizes,
            "flops": flops,
            "input_shape": shapes[0],
            "weight_shape": shapes[1],
            "output_shape": shape,
            "dtype": str(left.dtype).removeprefix("torch.") if left is not None else "",
            "needs_grad": (
                on and left is not None and left.requires_grad,
                on and (right.requires_grad if right is not None else any(trained)),
            ),
            "weight": self._weight_name(right, call.module) if is_weight else None,
            "refusal": refusal,
        }

    def _weight_name(self, right: Tensor | None, module: nn.Module | None) -> str | None:
        if right is not None:
            for tensor in (right, right._base):
                if tensor is not None and (name := self._parameter(tensor)) is not None:
                    return name
        if module is not None and (path := self.tree.path(module)) is not None:
            return f"{path}.weight" if path else "weight"  # computed by a parametrization
        return None

    def calls(self, opaque: dict[str, str]) -> tuple[SiteCall, ...]:
        """All products met; those inside a forward that stays the user's own cannot be sampled."""
        found = []
        for met in self.met.values():
            refusal = met.first.refusal
            if met.frame is not None and refusal is None and met.frame.path in opaque:
                owner = met.frame.path or "the model"
                refusal = f"the forward of {owner} stays as written: {opaque[met.frame.path]}"
            found.append(replace(met.first, flops=met.flops // met.calls, calls=met.calls, refusal=refusal))
        return tuple(found)


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def type_name(module: nn.Module) -> str:
    """The class a person would name: that of a parametrized layer before it was parametrized."""
    cls = type(module)
    return (
        cls.__mro__[1].__name__
        if "parametrizations" in module._modules and len(cls.__mro__) > 1
        else cls.__name__
    )


def _products(kind: Kind, call: Call, result: Any) -> list[tuple[str, Operation | Refusal, tuple[int, ...]]]:
    """(part, operation, shape of its result) of every product in the call."""
    found: list[tuple[str, Operation | Refusal, tuple[int, ...]]] = []
    whole = next(tensors(result), None)

    def product(part: str, operation: Operation | Refusal) -> Tensor:
        if isinstance(operation, Refusal):
            assert whole is not None
            found.append((part, operation, tuple(whole.shape)))
            return whole
        left, right, bias = _as_autocast(operation)
        made = operation.bilinear.forward(left, right, bias)
        found.append((part, operation, tuple(made.shape)))
        return made if operation.finish is None else operation.finish(made)

    try:
        kind.run(call, product)
    except Exception as error:  # a form that the kind does not know must not pass for a fault of the model
        shape = () if whole is None else tuple(whole.shape)
        reason = f"the kind {kind.name} cannot read the call: {type(error).__name__}: {error}"
        return [("", Refusal(reason.split("\n")[0], 0), shape)]
    return found


def _as_autocast(operation: Operation) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in one dtype, as autocast would have them."""
    left, right, bias = operation.left, operation.right, operation.bias
    if left.dtype == right.dtype:
        return left, right, bias
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(dtype), None if bias is None else bias.to(dtype)
