"""What is replaced in torch while a model is traced: the calls of modules, and what changes state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.autocast_mode import autocast

from ..kinds import Call
from ..sites import layer_id
from .facts import Applied, Foreign, OddValue, Region
from .frames import Frame
from .functions import original_apply, watching_functions
from .lines import author, definition, file_of
from .names import can_spell
from .nests import fingerprint, holders, is_plain, tensors
from .observe import type_name
from .provenance import Fault
from .reads import watching_reads
from .recorder import Recorder, _version
from .state import contents, snapshot

_call = nn.Module.__call__
_set = nn.Module.__setattr__


@contextmanager
def patched(recorder: Recorder) -> Iterator[None]:
    """Let `recorder` see calls of modules, assignments to them, autograd Functions and autocast regions."""
    with ExitStack() as stack:
        for owner, name, value in (
            (nn.Module, "__call__", lambda *a, **k: _module_call(recorder, *a, **k)),
            (nn.Module, "__setattr__", lambda m, n, v: _module_set(recorder, m, n, v)),
            *watching_reads(recorder),
            (autocast, "__enter__", _autocast_enter(recorder)),
            (autocast, "__exit__", _autocast_exit(recorder)),
            (torch.autograd.graph.saved_tensors_hooks, "__enter__", _saved_hooks_enter(recorder)),
        ):
            stack.enter_context(_replaced(owner, name, value))
        stack.enter_context(watching_functions(lambda c, a, k: _function_apply(recorder, c, a, k)))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    inherited = name not in owner.__dict__
    before = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


# ---- modules


def is_leaf(recorder: Recorder, module: nn.Module) -> bool:
    """Whether the module is one operation: a layer of torch without layers inside, or one a kind claims."""
    if isinstance(module, torch.nn.utils.parametrize.ParametrizationList):
        return True
    if "forward" in module.__dict__:  # set by the user on this one module: it may do anything
        return False
    inner = [name for name in module._modules if name != "parametrizations"]
    owner = next((cls for cls in type(module).__mro__ if "forward" in cls.__dict__), None)
    of_torch = owner is not None and owner.__module__.startswith(("torch.nn.", "torch.ao."))
    return (of_torch and not inner) or recorder.layer_kind(module) is not None


def _module_call(recorder: Recorder, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    path = recorder.tree.path(module)
    if path is None or path in recorder.treatment.inline or recorder.seen_running:
        return _call(module, *args, **kwargs)
    parent = recorder.top
    with recorder.running():
        whole = isinstance(module, torch.jit.ScriptModule) or is_leaf(recorder, module)
    if whole:
        return _leaf_call(recorder, parent, module, path, args, kwargs)
    with recorder.running():
        recorder.check_random()
        given = _spelled_arguments(recorder, parent, args, kwargs)
        before = [(operand, _version(operand)) for operand in (*tensors(args), *tensors(kwargs))]
        holding = [(value, fingerprint(value)) for _, value in holders((args, kwargs))][1:]
        line = recorder.line(parent)
        frame = Frame(
            module, path, recorder.tree, parent, recording=path not in recorder.treatment.opaque,
            grad=torch.is_grad_enabled(), inference=torch.is_inference_mode_enabled(),
            file=file_of(author(module)), line=line,
        )  # fmt: skip
    result = _frame_call(recorder, frame, args, kwargs)
    with recorder.running():
        changed = next((value for value, was in holding if fingerprint(value) != was), None)
        if changed is not None:
            what = f"changes a {type(changed).__name__} among its arguments"
            recorder.want_inline(frame, Fault(what, frame.line))
            if parent is not None:
                parent.recording = False
        if isinstance(result, Tensor) and parent is not None:
            result = recorder._distinct(result, before)
        if parent is not None:
            recorder.made_in(parent, result)
        if parent is not None and parent.recording:
            if isinstance(given, OddValue):
                _inline_or_fault(recorder, parent, frame, given)
            else:
                _record_module(recorder, parent, module, given, result, line)
    return result


def _leaf_call(
    recorder: Recorder,
    parent: Frame | None,
    module: nn.Module,
    path: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    with recorder.running():
        before = [(operand, _version(operand)) for operand in (*tensors(args), *tensors(kwargs))]
        given = _spelled_arguments(recorder, parent, args, kwargs)
        line = recorder.line(parent)
    with recorder.silent():
        result = _call(module, *args, **kwargs)
    with recorder.running():
        if isinstance(result, Tensor) and parent is not None:
            result = recorder._distinct(result, before)
        if parent is not None:
            recorder.made_in(parent, result)
        if any(p is not None and not recorder.tree.owns(p) for p in module._parameters.values()):
            recorder.fault(parent, f"runs {path} with other parameters than its own", line)
        if recorder.observer is not None:
            _observe_leaf(recorder, parent, module, path, args, kwargs, result, line)
        if parent is not None and parent.recording:
            if isinstance(given, OddValue):
                what = f"a {type(given.value).__name__}, which a captured forward cannot hold"
                recorder.fault(parent, f"passes on {what}", line)
            else:
                _record_module(recorder, parent, module, given, result, line)
    return result


def _observe_leaf(
    recorder: Recorder,
    parent: Frame | None,
    module: nn.Module,
    path: str,
    args: Any,
    kwargs: Any,
    result: Any,
    line: str | None,
) -> None:
    observer, kind = recorder.observer, recorder.layer_kind(module)
    assert observer is not None
    site = layer_id(path) if kind is not None else None
    if kind is not None:
        observer.site(
            kind, Call(args, kwargs, module=module), result, id_=layer_id(path), owner=path,
            op=type_name(module), number=None, frame=None, source=line,
        )  # fmt: skip
    if parent is not None or kind is not None:
        observer.layer(path, module, args, kwargs, result, site)


def _spelled_arguments(recorder: Recorder, parent: Frame | None, args: Any, kwargs: Any) -> Any:
    """The arguments as the parent's graph holds them, or the OddValue that they cannot be spelled for;
    None where the parent does not record."""
    if parent is None or not parent.recording:
        return None
    try:
        return parent.spelled(args), parent.spelled(kwargs)
    except OddValue as error:
        return error
    except Foreign as error:
        return recorder.with_constants(parent, error, args, kwargs, "passes")


def _inline_or_fault(recorder: Recorder, parent: Frame, frame: Frame, error: OddValue) -> None:
    """A child was given what text cannot say: record its calls in the parent's forward, next time."""
    what = f"a {type(error.value).__name__}, which a captured forward cannot hold"
    if frame.path in recorder.treatment.opaque or frame.path in recorder.faults:
        recorder.fault(parent, f"passes on {what}", frame.line)
        return
    recorder.want_inline(frame, Fault(f"takes {what}", frame.line))
    parent.recording = False  # what follows uses results that this run has not recorded


def _record_module(
    recorder: Recorder, parent: Frame, module: nn.Module, given: Any, result: Any, line: str | None
) -> None:
    below = recorder.tree.module_below(parent.path, module)
    if below is None:
        recorder.want_inline(parent, Fault("calls a module that is not inside it", line))
        return
    args, kwargs = given
    parent.record("call_module", below, args, kwargs, result, line)


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _frame_call(recorder: Recorder, frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a module with a frame of its own for its forward; hooks around it are not recorded."""
    module = frame.module
    if not _has_hooks(module):
        return _recorded(recorder, frame, lambda: _call(module, *args, **kwargs), args, kwargs)
    own = module.__dict__.get("forward")
    forward = module.forward

    def inner(*inner_args: Any, **inner_kwargs: Any) -> Any:
        return _recorded(
            recorder, frame, lambda: forward(*inner_args, **inner_kwargs), inner_args, inner_kwargs
        )

    module.__dict__["forward"] = inner
    try:
        with recorder.silent():
            return _call(module, *args, **kwargs)
    finally:
        if own is None:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = own


def _recorded(
    recorder: Recorder, frame: Frame, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    with recorder.running():
        if frame.recording:
            frame.bind(args, kwargs)
        before = snapshot(frame.module)
    recorder.stack.append(frame)
    try:
        result = run()
        with recorder.running():
            recorder.check_random()
            after = snapshot(frame.module)
            for name, value in after.items():
                if name != "forward" and before.get(name) != value:
                    recorder.changed_modules = True
                    once = is_plain(value) and is_plain(before.get(name))
                    recorder.fault(frame, f"changes self.{name}", definition(frame.module), once=once)
            _close(recorder, frame, result)
    finally:
        recorder.stack.pop()
    recorder.frames.append(frame)
    return result


def _close(recorder: Recorder, frame: Frame, result: Any) -> None:
    if not frame.recording:
        return
    try:
        frame.close(result)
    except OddValue as error:
        name = type(error.value).__name__
        recorder.want_inline(
            frame, Fault(f"returns a {name}, which a captured forward cannot make", definition(frame.module))
        )
    except Foreign as error:
        if recorder.is_constant(error.tensor):
            recorder.keep_constant(frame, error.tensor)
            _close(recorder, frame, result)
        else:
            recorder.cannot_spell(frame, error, "returns")


def _module_set(recorder: Recorder, module: nn.Module, name: str, value: Any) -> None:
    if recorder.top is not None and not recorder.seen_running and recorder.tree.path(module) is not None:
        try:
            before = getattr(module, name)
        except AttributeError:
            before = recorder  # something that nothing equals
        if before is not value and contents(before) != contents(value):
            recorder.changed_modules = True
            once = is_plain(value) and (before is recorder or is_plain(before))
            recorder.fault(recorder.top, f"assigns {name} of a module in its forward", once=once)
    _set(module, name, value)


# ---- autograd, autocast


def _function_apply(recorder: Recorder, cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    frame = recorder.top
    if frame is None or recorder.seen_running:
        return original_apply(cls, *args, **kwargs)
    if cls.__module__.startswith("torch.utils.checkpoint"):
        recorder.fault(frame, "checkpoints its activations")
        return original_apply(cls, *args, **kwargs)

    def run() -> Any:
        with recorder.silent():
            return original_apply(cls, *args, **kwargs)

    if not can_spell(cls):
        recorder.fault(
            frame, f"applies {cls.__qualname__}, an autograd Function that cannot be imported by name"
        )
    with recorder.running():
        return recorder.call(frame, Applied(cls), args, kwargs, run)


def _autocast_enter(recorder: Recorder) -> Callable[..., Any]:
    original = autocast.__dict__["__enter__"]

    def enter(self: autocast) -> Any:
        result = original(self)
        if recorder.top is not None and not recorder.seen_running:
            options = (
                ("device", self.device), ("dtype", self.fast_dtype), ("enabled", self._enabled),
                ("cache", self._cache_enabled),
            )  # fmt: skip
            recorder.top.regions.append(Region("autocast", options))
        return result

    return enter


def _autocast_exit(recorder: Recorder) -> Callable[..., Any]:
    original = autocast.__dict__["__exit__"]

    def leave(self: autocast, *error: Any) -> Any:
        if recorder.top is not None and not recorder.seen_running and recorder.top.regions:
            recorder.top.regions.pop()
        return original(self, *error)

    return leave


def _saved_hooks_enter(recorder: Recorder) -> Callable[..., Any]:
    original = torch.autograd.graph.saved_tensors_hooks.__dict__["__enter__"]

    def enter(self: Any) -> Any:
        if recorder.top is not None and not recorder.seen_running:
            recorder.fault(recorder.top, "sets saved-tensor hooks, as activation checkpointing does")
        return original(self)

    return enter
