"""The whole training step: forward, backward and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..capture._types import Inputs
from ..capture.nests import tensors
from ..capture.trials import copied, transformed
from ..errors import CaptureError, RequestError
from ..passes.copying import deep_copy
from ..passes.layout import lay_out
from .sites import LAST, Form, Side
from .timing import Arm, Budget, in_turn, waiting

# so small a rate that no weight runs away over a thousand steps on the same batch: a step costs the same
RATE = 1e-8
OPTIMIZERS: Mapping[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=RATE, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=RATE),
}
Sides = dict[tuple[str, Form], tuple[nn.Module, Inputs]]


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer | None:
    """A fresh optimizer of all parameters that train; None where there are none."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return OPTIMIZERS[name](parameters) if parameters else None


def loss_of(output: Any) -> Tensor:
    """The loss that is trained: the output's own `loss` (an attribute, or an item of a dict) where it is
    one number; else the sum, over the output's floating tensors that need a gradient, of the mean of
    their squares. Raises RequestError where nothing in the output needs a gradient."""
    own = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.numel() == 1 and own.requires_grad:
        return own.reshape(())
    terms = [
        result.float().square().mean()
        for result in tensors(output)
        if result.requires_grad and result.is_floating_point()
    ]
    if not terms:
        raise RequestError(
            "nothing in the model's output needs a gradient, so there is no training step to measure",
            remedy="bench a model in which parameters train",
        )
    return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def training_step(model: nn.Module, inputs: Inputs, optimizer: torch.optim.Optimizer | None) -> Arm:
    """One step on these inputs, again and again: `zero_grad`, forward, `loss_of`, backward, `step`."""
    leaves = [t for t in tensors((inputs.args, dict(inputs.kwargs or {}))) if t.requires_grad]

    def step() -> None:
        given = inputs
        if leaves:  # a forward may write into an input that needs a gradient only where it is no leaf
            given = transformed(inputs, lambda tensor: tensor.clone() if tensor.requires_grad else tensor)
            for leaf in leaves:
                leaf.grad = None
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        loss_of(model(*given.args, **(given.kwargs or {}))).backward()
        if optimizer is not None:
            optimizer.step()

    return step


def sides(exact: nn.Module, ours: nn.Module, inputs: Inputs) -> Sides:
    """Copies of both models to train, the given memory format first; models with convolution weights in
    both formats, for the exact model's best form is what ours must be compared with."""
    found: Sides = {}
    for form in forms_of(exact):
        for name, model in (("exact", exact), ("ours", ours)):
            found[name, form] = in_form(model, inputs, None if form == forms_of(exact)[0] else form)
    return found


def forms_of(model: nn.Module) -> list[Form]:
    """The memory formats to try, that of the model's weights first; one for a model without planes."""
    planes = [p for p in model.parameters() if p.dim() in LAST]
    if not planes:
        return ["contiguous"]
    last = any(not p.is_contiguous() and p.is_contiguous(memory_format=LAST[p.dim()]) for p in planes)
    return ["channels_last", "contiguous"] if last else ["contiguous", "channels_last"]


def in_form(model: nn.Module, inputs: Inputs, form: Form | None) -> tuple[nn.Module, Inputs]:
    """A copy of the model in training mode and of its inputs; `form` None leaves their formats alone."""
    replica = deep_copy(model)
    if not replica.training:
        replica.train()
    given = copied(inputs)
    if form is None:
        return replica, given

    def laid_out(tensor: Tensor) -> Tensor:
        if tensor.dim() not in LAST or not tensor.is_floating_point():
            return tensor
        wanted = LAST[tensor.dim()] if form == "channels_last" else torch.contiguous_format
        return tensor.detach().contiguous(memory_format=wanted).requires_grad_(tensor.requires_grad)

    for parameter in replica.parameters():
        parameter.data = laid_out(parameter.data)
    lay_out(replica)  # a change of format undoes what a rewrite did
    return replica, transformed(given, laid_out)


def time_steps(
    found: Sides, optimizer: str, budget: Budget, *, tick: Callable[[float], object] | None = None
) -> tuple[dict[str, Side], list[str]]:
    """The steps of both sides ("exact", "ours") in turn, and a note for each format that does not run.

    Raises CaptureError where a model does not train in the format that was given."""
    arms: dict[tuple[str, Form], Arm] = {}
    failed: dict[Form, str] = {}
    given = next(iter(found))[1]
    device = torch.device("cpu")
    for (name, form), (model, inputs) in found.items():
        device = next((p.device for p in model.parameters()), device)
        step = training_step(model, inputs, optimizer_of(optimizer, model))
        try:
            step()
        except RequestError:
            raise
        except Exception as failure:
            said = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
            if form == given:
                raise CaptureError(f"{name}: the model does not train on the inputs: {said}") from failure
            failed[form] = f"{name} does not train in {form}: {said}"
            continue
        arms[name, form] = step
    timings = in_turn(arms, budget, wait=waiting(device), tick=tick)
    both = {
        name: Side({form: timing for (side, form), timing in timings.items() if side == name})
        for name in ("exact", "ours")
    }
    return both, list(failed.values())
