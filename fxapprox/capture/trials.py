"""One run of a model, and everything that can be seen of it from outside."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ._types import Inputs
from .compare import Plain, difference_of_leaves, leaves
from .rng import RandomState, seed_all

_SEED_OF_PROJECTION = 0x5EED
_TORCHS_OWN = frozenset(nn.Module().__dict__)


@dataclass(frozen=True)
class Modes:
    """What a caller's context managers set: the grad mode, and autocast's dtype by device (None: off)."""

    grad: bool = True
    autocast: Mapping[str, torch.dtype | None] = field(default_factory=dict)

    @classmethod
    def now(cls) -> Modes:
        devices = ("cpu", "cuda") if torch.cuda.is_initialized() else ("cpu",)
        autocast = {
            device: torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
            for device in devices
        }
        return cls(torch.is_grad_enabled(), autocast)

    @contextmanager
    def entered(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for device, dtype in self.autocast.items():
                stack.enter_context(torch.autocast(device, dtype, enabled=dtype is not None))
            yield


@dataclass(frozen=True)
class Trial:
    """How to run a model once. `random` is a seed, or the random states at the start."""

    label: str
    training: bool
    inputs: Inputs
    random: int | RandomState = 0
    modes: Modes = field(default_factory=Modes)


@dataclass(frozen=True)
class Outcome:
    """What one run showed: name ("output[0]", "gradient of fc.weight") → tensor or plain value.

    `failure` is what the forward raised, `backward` what the backward pass raised."""

    seen: Mapping[str, Any] = field(default_factory=dict)
    failure: Exception | None = None
    backward: Exception | None = None


def run(model: nn.Module, trial: Trial) -> Outcome:
    """Run `model` (a copy: its state changes), and in train mode one backward pass.

    The loss is a fixed random projection of all floating outputs, so that an error in any of them
    shows in the gradients."""
    model.train(trial.training)
    originals = copied(trial.inputs)
    # in-place operations on an input that needs a gradient are only legal where it is not a leaf
    given = transformed(originals, lambda tensor: tensor.clone() if tensor.requires_grad else tensor)
    if isinstance(trial.random, RandomState):
        trial.random.restore()
    else:
        seed_all(trial.random)
    try:
        with trial.modes.entered(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*was rewritten with (other arguments|another self)")
            output = model(*given.args, **(given.kwargs or {}))
    except Exception as failure:
        return Outcome(failure=failure)
    seen = {f"output{name}": value for name, value in leaves(output)}
    backward = None
    if trial.training and (loss := projection(seen.values())) is not None:
        try:
            loss.backward()
            seen |= gradients(model, originals)
        except Exception as failure:
            backward = failure
    return Outcome(seen | _state(model), backward=backward)


def projection(outputs: Any) -> Tensor | None:
    """A scalar: the outputs that need gradients, times fixed random numbers; None where there are none."""
    source = torch.Generator().manual_seed(_SEED_OF_PROJECTION)
    total: Tensor | None = None
    for output in outputs:
        if not (isinstance(output, Tensor) and output.requires_grad):
            continue
        real = torch.view_as_real(output) if output.is_complex() else output
        wide = real if real.dtype == torch.float64 else real.float()
        weights = torch.randn(wide.shape, generator=source).to(wide) / max(wide.numel(), 1) ** 0.5
        term = (wide * weights).sum()
        total = term if total is None else total + term.to(total)
    return total


def gradients(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The gradients of parameters and inputs by name; takes them away from the parameters."""
    found: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        found[f"gradient of {name}"] = parameter.grad
        parameter.grad = None
    for name, value in leaves((inputs.args, inputs.kwargs or {})):
        if isinstance(value, Tensor) and value.requires_grad:
            found[f"gradient of input {name}"] = value.grad
    return found


def _state(model: nn.Module) -> dict[str, Any]:
    """Buffers, and the attributes a forward may set (counters, cached activations, auxiliary losses)."""
    state: dict[str, Any] = {
        f"buffer {name}": value for name, value in model.named_buffers(remove_duplicate=False)
    }
    for path, module in model.named_modules():
        for name, value in module.__dict__.items():
            if name not in _TORCHS_OWN and isinstance(value, Tensor | list | tuple | dict | Plain):
                for place, leaf in leaves(value, nesting=3):
                    state[f"attribute {path}.{name}{place}".replace(" .", " ")] = leaf
    return state


def mismatch(theirs: Outcome, ours: Outcome, ignored: frozenset[str] = frozenset()) -> dict[str, str]:
    """Name → how `ours` differs there. Names that only `ours` has are constants of captured forwards."""
    if ours.failure is not None:
        return {"output": f"the captured forward raises {_said(ours.failure)}"}
    if ours.backward is not None and theirs.backward is None:
        return {"gradients": f"the backward pass of the captured forward raises {_said(ours.backward)}"}
    found: dict[str, str] = {}
    for name, expected in theirs.seen.items():
        if name in ignored or (ours.backward is not None and name.startswith("gradient")):
            continue
        if name not in ours.seen:
            if name.startswith("attribute") and isinstance(expected, bool | str | None):
                continue  # a mark that a first forward sets ("prepared"); what counts or computes is compared
            found[name] = f"{name} is missing: the user's forward sets it"
            continue
        actual = ours.seen[name]
        wrong = difference_of_leaves(expected, actual)
        if wrong and name.startswith("gradient"):  # the noise costs a pass over all: mostly not needed
            wrong = difference_of_leaves(expected, actual, _noise_of_gradients(theirs))
        if wrong and not _both_no_gradient(expected, actual):
            found[name] = f"{name} {wrong}"
    return found


def _noise_of_gradients(outcome: Outcome) -> float:
    """Differences below this are rounding in any gradient: those that cancel to zero (a bias before
    batch norm) are nothing but rounding of the size of the others."""
    sizes = [
        torch.linalg.vector_norm(value.detach(), math.inf).item() * 10 * torch.finfo(value.dtype).eps
        for name, value in outcome.seen.items()
        if name.startswith("gradient") and isinstance(value, Tensor) and value.numel() and not value.is_sparse
    ]
    return max((size for size in sizes if size == size and size != float("inf")), default=0.0)


def _both_no_gradient(expected: Any, actual: Any) -> bool:
    given = [value for value in (expected, actual) if isinstance(value, Tensor)]
    return len(given) == 1 and not given[0].any()


def _said(failure: Exception) -> str:
    return f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"


def transformed(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with every tensor in them, at any depth, replaced by `change(tensor)`."""
    everything = (inputs.args, dict(inputs.kwargs or {}))
    tensors = {id(leaf): leaf for _, leaf in leaves(everything) if isinstance(leaf, Tensor)}
    memo: dict[int, Any] = {key: change(tensor) for key, tensor in tensors.items()}
    args, kwargs = copy.deepcopy(everything, memo)
    return Inputs(args, kwargs)


def copied(inputs: Inputs) -> Inputs:
    """Inputs of the same values that a forward may write into; gradient flags are kept."""
    return transformed(inputs, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad))


def other_values(inputs: Inputs, seed: int = 1) -> Inputs:
    """Inputs of the same shapes and other values: random within the range of the floating ones, the
    others permuted (indices stay valid)."""
    source = torch.Generator().manual_seed(seed)

    def change(tensor: Tensor) -> Tensor:
        return _redrawn(tensor.detach(), source).requires_grad_(tensor.requires_grad)

    return transformed(inputs, change)


def _redrawn(tensor: Tensor, source: torch.Generator) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta:
        return tensor.clone()
    ordinary = tensor.is_floating_point() and tensor.numel() > 1 and bool(tensor.isfinite().all())
    if not ordinary:  # a permutation keeps masks of -inf, indices and lengths meaningful
        order = torch.randperm(tensor.numel(), generator=source).to(tensor.device)
        return tensor.flatten()[order].reshape(tensor.shape)
    noise = torch.randn(tensor.shape, generator=source).to(tensor)
    low, high = tensor.min(), tensor.max()
    if low == high:
        return noise
    return (tensor.mean() + noise * tensor.float().std().to(tensor)).clamp(low, high)


def batch_size(inputs: Inputs) -> int:
    """Dimension 0 of the first tensor that has dimensions, 0 where there is none."""
    tensors = (leaf for _, leaf in leaves((inputs.args, inputs.kwargs or {})) if isinstance(leaf, Tensor))
    return next((tensor.shape[0] for tensor in tensors if tensor.dim()), 0)


def other_batch_size(batch: int) -> int:
    """Half of an even batch from 4 on, else twice the batch (three of one): the sizes that a trace is
    likely to have met are one apart."""
    return 3 if batch == 1 else batch // 2 if batch % 2 == 0 and batch >= 4 else 2 * batch


def with_batch(inputs: Inputs, size: int) -> Inputs:
    """Inputs with `size` examples: dimension 0 shortened, or repeated, wherever it is the batch."""
    batch = batch_size(inputs)
    rows = torch.arange(size) % batch

    def change(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != batch or tensor.layout != torch.strided:
            return tensor
        picked = tensor.detach()[rows.to(tensor.device)]
        return picked.requires_grad_(tensor.requires_grad)

    return transformed(inputs, change)
