"""Batch-norm statistics of the exact network, for a model that was trained with sampled products.

Sampling without scaling shrinks activations in training, so the running statistics describe the sampled
network, while evaluation runs the exact one. `torch.optim.swa_utils.update_bn` is close, but puts the
whole model in training mode: dropout on, every product sampled, layers that the user froze thawed; and
what it changed stays changed when a batch fails.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import RequestError
from .layers import sampling_modules

Forward = Callable[[nn.Module, Any], object]


def reestimate_batchnorm(
    model: nn.Module, loader: Iterable[Any], *, batches: int | None = None, forward: Forward | None = None
) -> tuple[str, ...]:
    """Replace the running statistics of the model's batch norms by those of exact forward passes over
    `loader` (its first `batches`): the mean over the batches, each counting once. Returns the layers' paths.

    Everything but batch norm is in evaluation mode meanwhile: products exact, no dropout. For rewritten,
    emitted and plain models. A batch is a tensor, a dict (keyword inputs), or a tuple or list that
    begins with one of the two (the rest are targets); `forward(model, batch)` runs anything else. Batches
    are moved to the model's device where it has a single one. Under data parallelism every process sees
    its own batches, except in SyncBatchNorm.

    Left alone: layers without running statistics (`track_running_stats=False`), layers that no batch
    reaches, and frozen ones: with momentum 0; in evaluation mode inside a model in training mode; where the
    whole model is in evaluation mode, without trainable parameters while others have some.

    Training flags and momenta are what they were afterwards; where a batch fails or is interrupted, the
    statistics too. A model without such layers earns a warning. Raises RequestError where the loader yields
    nothing, or what it yields cannot be given to the model."""
    layers = _layers(model)
    if not layers:
        warnings.warn(
            f"{type(model).__name__} has no batch norm to re-estimate: none with running statistics, or all "
            "of them frozen",
            stacklevel=2,
        )
        return ()
    if batches is not None and batches < 1:
        raise RequestError(f"batches = {batches} is less than 1")
    fetched = islice(loader, batches)
    first = list(islice(fetched, 1))
    if not first:
        raise RequestError(
            "the loader yields no batch: there is nothing to estimate statistics from",
            remedy="pass a loader, not an iterator that is used up; drop_last=True drops the only batch of a "
            "small data set",
        )
    before = {path: _statistics(layer) for path, layer in layers.items()}
    unseen = set(layers)
    try:
        with _exact_but_batch_norm(model, layers.values()), torch.no_grad(), _bar(loader, batches) as advance:
            _estimate(model, layers.values(), chain(first, fetched), forward or _forward, advance)
        unseen = {path for path, layer in layers.items() if layer.num_batches_tracked == 0}
    finally:  # all of them after an error, or an interrupt
        for path in unseen:
            _restore(layers[path], before[path])
    return tuple(path for path in layers if path not in unseen)


@contextmanager
def batchnorm_reestimated(
    model: nn.Module, loader: Iterable[Any], *, batches: int | None = None, forward: Forward | None = None
) -> Iterator[nn.Module]:
    """Inside the `with`, the model's batch norms have re-estimated statistics (see `reestimate_batchnorm`);
    after it those of training again, so that evaluating changes nothing in the run.

    >>> with fxapprox.batchnorm_reestimated(model, loader, batches=20):
    ...     accuracy = evaluate(model)
    """
    layers = tuple(_layers(model).values())
    before = [_statistics(layer) for layer in layers]
    try:
        reestimate_batchnorm(model, loader, batches=batches, forward=forward)
        yield model
    finally:
        for layer, old in zip(layers, before, strict=True):
            _restore(layer, old)


def _layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms whose statistics are estimates of the user's: by path, frozen ones left out."""
    norms = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.momentum != 0
    }
    if model.training:
        return {path: norm for path, norm in norms.items() if norm.training}
    # in evaluation mode all flags are down; an average of weights has no trainable parameter at all
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return norms
    return {path: norm for path, norm in norms.items() if not norm.affine or norm.weight.requires_grad}


def _statistics(layer: _BatchNorm) -> tuple[Tensor, ...]:
    return tuple(buffer.clone() for buffer in _buffers(layer))


def _buffers(layer: _BatchNorm) -> Iterator[Tensor]:
    for buffer in (layer.running_mean, layer.running_var, layer.num_batches_tracked):
        assert buffer is not None
        yield buffer


def _restore(layer: _BatchNorm, old: Iterable[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(_buffers(layer), old, strict=True):
            buffer.copy_(value)


def _estimate(
    model: nn.Module,
    layers: Iterable[_BatchNorm],
    batches: Iterable[Any],
    forward: Forward,
    advance: Callable[[], None],
) -> None:
    device = _device(model)
    for layer in layers:
        layer.reset_running_stats()
    for batch in batches:
        try:
            forward(model, moved(batch, device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RequestError(
                f"a batch is too small for statistics of its own: {error}",
                remedy="leave out the last, smaller batch: drop_last=True",
            ) from error
        advance()


@contextmanager
def _exact_but_batch_norm(model: nn.Module, layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """All modules in evaluation mode but these layers, which average over all batches.

    Flags are set one by one: `train()` and `eval()` may be overridden, and would not restore a mixture."""
    # the sites of calls in containers are not among the modules
    modules = dict.fromkeys(chain(model.modules(), sampling_modules(model)))
    flags = [(module, module.training) for module in modules]
    momenta = [(layer, layer.momentum) for layer in layers]
    try:
        for module, _ in flags:
            module.training = False
        for layer, _ in momenta:
            layer.training, layer.momentum = True, None
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for layer, momentum in momenta:
            layer.momentum = momentum


def _device(model: nn.Module) -> torch.device | None:
    """The device that all tensors of the model share; None where they are on several."""
    devices = {tensor.device for tensor in chain(model.parameters(), model.buffers())}
    return devices.pop() if len(devices) == 1 else None


def moved(batch: Any, device: torch.device | None) -> Any:
    """The batch with everything in it that has a `to` on the device."""
    if device is None:
        return batch
    if hasattr(batch, "to"):  # tensors, packed sequences, graphs, a tokenizer's batches
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        items = [moved(value, device) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def _forward(model: nn.Module, batch: Any) -> object:
    given = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return model(**given)
    if isinstance(given, Tensor):
        return model(given)
    what = type(batch).__name__ if given is batch else f"{type(batch).__name__} of {type(given).__name__}"
    raise RequestError(
        f"a batch of the loader is a {what}: neither a tensor, a dict, nor a tuple that begins with one",
        remedy="say how to run it: forward=lambda model, batch: model(batch.x, batch.edges)",
    )


def _bar(loader: Iterable[Any], batches: int | None) -> AbstractContextManager[Callable[[], None]]:
    """A progress bar where somebody watches."""
    if not sys.stderr.isatty():
        return nullcontext(lambda: None)
    from ..report.progress import progress  # rich is not needed before something is printed

    known = [len(loader)] if isinstance(loader, Sized) else []
    return progress("re-estimating batch norm", min([*known, *([batches] if batches else [])], default=None))
