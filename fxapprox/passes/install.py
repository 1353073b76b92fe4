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
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any, ClassVar

from torch import Tensor, nn

from ..capture._types import Forward, FunctionCall
from ..errors import FxApproxError

Imports = tuple[tuple[str, tuple[str, str]], ...]


class Captured:
    """The mark of a class that runs a captured forward, and how its instances are pickled."""

    _fxapprox_base: ClassVar[type[nn.Module]]
    _fxapprox_text: ClassVar[tuple[str, Imports]]

    def __init_subclass__(cls) -> None:
        """Keep the generated class from registering itself where the user's base class lists subclasses."""

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
    imports = tuple(sorted((name, place) for name, place in forward.imports.items()))
    captured = _class_for(module, source, imports)
    for name, value in forward.constants.items():
        if isinstance(value, Tensor):
            module.register_buffer(name, value.detach().clone(), persistent=False)
        else:
            setattr(module, name, value)
    module.__dict__.pop("forward", None)  # a forward set on the instance would hide the class's
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


def _class_for(module: nn.Module, source: str, imports: Imports) -> type[nn.Module]:
    cls = type(module)
    if "parametrizations" not in module._modules or len(cls.__bases__) != 1:
        return captured_class(cls, source, imports)  # type: ignore[arg-type]
    # torch made this class for this one module, to hold the properties of its parametrized tensors, and
    # removes it again with the last of them: it must stay the outermost
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (captured_class(cls.__bases__[0], source, imports),), own)


@functools.cache
def captured_class(base: type[nn.Module], source: str, imports: Imports) -> type[nn.Module]:
    """The subclass of `base` that runs `source`; one class for equal arguments.

    Raises FxApproxError for text that does not compile, or an import that cannot be found."""
    functions = compiled(source, dict(imports), f"{base.__name__}.forward")
    forward = functions["forward"]
    # the text may spell defaults and annotations differently; callers that inspect must see the user's
    forward.__signature__ = inspect.signature(base.forward)  # type: ignore[attr-defined]
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
            "_fxapprox_text": (source, imports),
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


def _rebuilt(text: tuple[str, Imports], function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    instance = function(*arguments)
    instance.__class__ = captured_class(type(instance), *text)  # type: ignore[arg-type]
    return instance
