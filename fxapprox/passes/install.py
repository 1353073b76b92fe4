"""Install a captured forward on a module, without the module ceasing to be what it was.

The module's class becomes a generated subclass of its own class whose `forward` is the compiled text:
`isinstance`, `inspect.signature(module.forward)`, `copy.deepcopy`, `pickle` and tracebacks (which show
the generated lines) go on working.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import linecache
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, ClassVar

from torch import Tensor, nn

from ..capture._types import Forward, FunctionCall
from ..capture.guards import Guard, changed_attribute, odd_call
from ..errors import FxApproxError
from .classes import rebased

Imports = tuple[tuple[str, tuple[str, str]], ...]
Text = tuple[str, Imports, Guard | None]
ODD = "_fxapprox_odd_call"
READS = "_fxapprox_reads"
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.KEYWORD_ONLY,)


class Captured:
    """The mark of a class that runs a captured forward, and how its instances are pickled."""

    _fxapprox_base: ClassVar[type[nn.Module]]
    _fxapprox_text: ClassVar[Text]

    def __init_subclass__(cls) -> None:
        """Keep the generated class from registering itself where the user's base class lists subclasses."""

    def _fxapprox_as_written(self, odd: str, /, *args: Any, **kwargs: Any) -> Any:
        """The user's own forward, for a call that could take another way than the captured one went."""
        warnings.warn(
            f"{self._fxapprox_base.__name__} was rewritten with {odd}: its forward runs "
            "as written, and the calls of functions in it exactly; rewrite it as it is used to sample them",
            stacklevel=3,
        )
        own = self.__dict__.get("_fxapprox_forward")
        return (super().forward if own is None else own)(*args, **kwargs)  # type: ignore[misc]

    def train(self, mode: bool = True) -> Any:
        """Reaches sites that stand outside the module's children, too (those of containers)."""
        for value in vars(self).values():
            if isinstance(value, nn.Module) and "_fxapprox" in vars(value):
                value.train(mode)
        return super().train(mode)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The base's own reduction, whose result is given the generated class again once rebuilt."""
        reduction = super().__reduce_ex__(protocol)
        if isinstance(reduction, str) or "_fxapprox_text" not in vars(type(self)):
            return reduction  # a singleton by name, or a class derived from ours that has its own ways
        function, arguments, *state = reduction
        arguments = tuple(self._fxapprox_base if item is type(self) else item for item in arguments)
        return (_rebuilt, (self._fxapprox_text, function, arguments), *state)


def install(module: nn.Module, forward: Forward, sampled: Iterable[FunctionCall] = ()) -> None:
    """Make `module` run `forward`, with the calls in `sampled` going to `self.<name>` instead.

    The children that `sampled` names must be added by the caller. Constants of the forward become
    buffers that are not persistent: they follow `.to()` and stay out of the state_dict."""
    source = redirected(forward, sampled)
    imports = dict(forward.imports)
    if forward.guard is not None:
        source = _guarded(source, forward.guard)
        imports[ODD] = (odd_call.__module__, odd_call.__name__)
    text = source, tuple(sorted(imports.items())), forward.guard
    captured = rebased(module, lambda cls: captured_class(cls, *text))
    for name, value in forward.constants.items():
        if isinstance(value, Tensor):
            module.register_buffer(name, value.detach().clone(), persistent=False)
        else:
            setattr(module, name, value)
    # what the forward itself sets in its first call ("prepared") is not yet what the trace read
    module.__dict__[READS] = tuple(read for read in forward.reads if not changed_attribute(module, (read,)))
    if "forward" in module.__dict__:  # one set on the instance would hide the class's
        module.__dict__["_fxapprox_forward"] = module.__dict__.pop("forward")
    module.__class__ = captured


def redirected(forward: Forward, sampled: Iterable[FunctionCall]) -> str:
    """The forward's text in which each placeholder of `sampled` calls `self.<name>`."""
    source = textwrap.dedent(forward.source)
    for call in sampled:
        source, times = re.subn(rf"\b{re.escape(call.target)}\(", f"self.{call.name}(", source)
        if not times:
            raise FxApproxError(
                f"the captured forward never calls {call.target}",
                where=forward.path or "the model",
                remedy="this is a fault of fxapprox: name the module in leaf= to go around it",
            )
    return source


def _guarded(source: str, guard: Guard) -> str:
    """The text that first asks whether it holds for its arguments."""
    head, rest = source.split("\n", 1)
    values = "".join(f"{name}, " for name in guard.names)
    check = (
        f"    if (_odd := {ODD}(self._fxapprox_text[2], ({values}), self, self.{READS})) is not None:\n"
        f"        return self._fxapprox_as_written(_odd, {guard.passed})\n"
    )
    return f"{head}\n{check}{rest}"


@functools.cache
def captured_class(
    base: type[nn.Module], source: str, imports: Imports, guard: Guard | None = None
) -> type[nn.Module]:
    """The subclass of `base` that runs `source`; one class for equal arguments.

    Raises FxApproxError for text that does not compile, or an import that cannot be found."""
    functions = compiled(source, dict(imports), f"{base.__name__}.forward")
    forward = functions["forward"]
    # the text may spell defaults and annotations differently: a call must get, and callers that inspect
    # must see, the user's
    signature = inspect.signature(base.forward)
    if list(signature.parameters)[1:] == list(inspect.signature(forward).parameters)[1:]:
        for name, kinds in (("__defaults__", _POSITIONAL), ("__kwdefaults__", _BY_NAME)):
            given = {p.name: p.default for p in signature.parameters.values()
                     if p.kind in kinds and p.default is not p.empty}  # fmt: skip
            setattr(forward, name, given if kinds is _BY_NAME else tuple(given.values()))
    forward.__signature__ = signature  # type: ignore[attr-defined]
    forward.__doc__ = base.forward.__doc__

    return type(
        f"Sampled{base.__name__}",
        (Captured, base),
        {
            **functions,
            "__module__": base.__module__,
            "__qualname__": f"Sampled{base.__qualname__}",
            "__doc__": base.__doc__,
            "_fxapprox_base": base,
            "_fxapprox_text": (source, imports, guard),
        },
    )


def compiled(source: str, imports: Mapping[str, tuple[str, str]], title: str) -> dict[str, FunctionType]:
    """The functions that `source` defines. Their text is known to linecache, so tracebacks show it."""
    namespace: dict[str, Any] = {name: found(*place) for name, place in imports.items()}
    digest = hashlib.blake2b(repr((source, sorted(imports.items()))).encode(), digest_size=6).hexdigest()
    filename = f"<fxapprox {title} {digest}>"
    before = set(namespace) | {"__builtins__"}
    try:
        exec(compile(source, filename, "exec"), namespace)
    except SyntaxError as failure:
        raise FxApproxError(f"the captured forward does not compile: {failure}", where=title) from failure
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    return {name: value for name, value in namespace.items()
            if name not in before and isinstance(value, FunctionType)}  # fmt: skip


def found(module: str, qualified: str) -> Any:
    """What an import of a Forward stands for: `qualified` in `module`, the module itself where it is ""."""
    value: Any = importlib.import_module(module)
    try:
        for part in filter(None, qualified.split(".")):
            value = getattr(value, part)
    except AttributeError as failure:
        raise FxApproxError(f"cannot import {qualified} from {module}: {failure}") from failure
    return value


def _rebuilt(text: Text, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    instance = function(*arguments)
    instance.__class__ = captured_class(type(instance), *text)  # type: ignore[arg-type]
    return instance
