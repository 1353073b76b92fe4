"""The last rung: no graph. The layers that a kind claims are sites, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

from ..kinds import Call, recognise
from ..sites import layer_id
from ._types import Edge, Inputs, Note, Operator, Traced
from .copies import clone, copied, copied_model
from .idle import never_run
from .lines import raised_at
from .nests import tensors
from .observe import Observer, type_name
from .rng import kept_random_state, seed_all
from .runs import model_fails
from .tree import Tree


def by_hooks(model: nn.Module, inputs: Inputs, reason: str) -> Traced:
    """Run a copy of the model once, on real tensors, in train mode, and note the layers that run.

    Every forward stays the user's own. `reason` says why better front-ends were refused. Raises
    CaptureError where the model itself fails on the inputs."""
    with kept_random_state():
        replica = copied_model(model, clone)
        args, kwargs = copied((inputs.args, dict(inputs.kwargs or {})), clone)
        replica.train()
        seed_all(0)
        observer = Observer(Tree(replica))
        with _noted(replica, observer), _Uses(observer):
            try:
                replica(*args, **kwargs)
            except Exception as error:
                raise model_fails(model, error, raised_at(error)) from error
    ids = list(observer.operators)
    edges = tuple(Edge(one, other) for one, other in pairwise(ids))
    notes = Note("refused", reason), *never_run(observer)
    return Traced("modules", observer.calls({}), {}, notes, tuple(observer.operators.values()), edges)


class _Uses(TorchFunctionMode):
    """Notes the parameters that functions are called with."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.observer = observer

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        self.observer.uses((args, kwargs))
        return func(*args, **(kwargs or {}))


@contextmanager
def _noted(model: nn.Module, observer: Observer) -> Iterator[None]:
    handles = []
    for path, module in model.named_modules():
        if recognise(module=module) is not None:
            handles.append(module.register_forward_hook(_hook(observer, path), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(observer: Observer, path: str) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        kind = recognise(module=module)
        assert kind is not None
        name, id_ = type_name(module), layer_id(path)
        observer.site(
            kind, Call(args, kwargs, module=module), result, id_=id_, owner=path, op=name, number=None,
            frame=None, source=None,
        )  # fmt: skip
        made = next(tensors(result), None)
        shape = None if made is None else tuple(made.shape)
        observer.operators.setdefault(id_, Operator(id_, name, path, id_, shape))

    return note
