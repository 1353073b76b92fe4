"""Layers and function calls that sample their products in training and are exact in evaluation.

A layer is changed in place: its class becomes a generated subclass of its own class, so it remains an
instance of it, with the parameters, hooks and state_dict it had. A function call becomes a small
module without parameters. Both hold one plain attribute, `_fxapprox`, with all there is to know.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from ..choices import Choice
from ..errors import RequestError
from ..kinds import Call, Kind, recognise
from ..problems import raise_problems
from ..syntax import read_choice
from .classes import rebased
from .parts import Sites

M = TypeVar("M", bound=nn.Module)


class SiteModule(nn.Module):
    """A module that holds sites: lets them hear when the weight is loaded, moved or cast."""

    _fxapprox: Sites

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fxapprox.forget()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._fxapprox.forget()
        return super()._apply(*args, **kwargs)


class Sampled(SiteModule):
    """The mark of a layer whose products are sampled; comes before the layer's own class."""

    _fxapprox_base: ClassVar[type[nn.Module]]

    def __init_subclass__(cls) -> None:
        """Keep the generated class from registering itself where a user's base class lists subclasses."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.training and not self._fxapprox.evaluates:
            return super().forward(*args, **kwargs)
        short = self._fxapprox.lane
        if short is not None and self.training and len(args) == 1 and not kwargs:
            result = short(self, args[0])
            if result is not None:
                return result
        # a parametrized weight is computed once however often the kind looks at it: spectral norm's
        # power iteration moves on at every look
        if "parametrizations" in self._modules:
            with parametrize.cached():
                return self._sampled(Call(args, kwargs, module=self))
        return self._sampled(Call(args, kwargs, module=self))

    def _sampled(self, call: Call) -> Any:
        return self._fxapprox.run(call) if self.training else self._fxapprox.evaluate(call)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), str(self._fxapprox))))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The base's own reduction, whose result is given the generated class again once rebuilt."""
        reduction = super().__reduce_ex__(protocol)
        if isinstance(reduction, str) or "_fxapprox_base" not in vars(type(self)):
            return reduction  # a singleton by name, or a class derived from ours that has its own ways
        function, arguments, *state = reduction
        arguments = tuple(self._fxapprox_base if item is type(self) else item for item in arguments)
        return (_rebuilt, (self._fxapprox_base, function, arguments), *state)


@functools.cache
def sampled_class(base: type[nn.Module]) -> type[nn.Module]:
    """The class `Sampled<Base>`, a subclass of `base`; always the same one."""
    names = {"_fxapprox_base": base, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(f"Sampled{base.__name__}", (Sampled, base), names)


def _rebuilt(
    base: type[nn.Module], function: Callable[..., nn.Module], arguments: tuple[Any, ...]
) -> nn.Module:
    module = function(*arguments)
    module.__class__ = sampled_class(base)  # type: ignore[arg-type]
    return module


def sample_module(module: nn.Module, *, site: str, kind: Kind, choice: Choice) -> None:
    """Make a layer sample its products, in place: its class becomes a generated subclass of its class.

    In training its forward does what `choice` says, in evaluation what it did. A layer that samples
    already gets the new choice and begins its draws anew."""
    module.__dict__["_fxapprox"] = Sites.of(kind, site, {"": choice})
    if isinstance(module, Sampled):
        return
    module.__class__ = rebased(module, sampled_class)


def sampling_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Every layer and function call of the model that samples, each once; the calls in containers, too,
    which are no children there."""
    seen: set[int] = set()
    for module in model.modules():
        for held in (module, *(value for value in vars(module).values() if isinstance(value, nn.Module))):
            if isinstance(vars(held).get("_fxapprox"), Sites) and id(held) not in seen:
                seen.add(id(held))
                yield held


def sites_of(model: nn.Module) -> Iterator[Sites]:
    """What the model's layers and calls sample, see `sampling_modules`."""
    for module in sampling_modules(model):
        yield vars(module)["_fxapprox"]


def unsample(model: M) -> M:
    """The model itself, with every site exact again: layers are of the class they had, function calls
    run the function."""
    for module in list(sampling_modules(model)):
        if isinstance(module, FunctionSite):
            module._fxapprox = Sites(module._fxapprox.kind, {})
            continue
        del module.__dict__["_fxapprox"]
        module.__class__ = rebased(module, lambda cls: cls._fxapprox_base)  # type: ignore[attr-defined]
    return model


def sampled(module: M, *, site: str, **keys: Any) -> M:
    """The layer itself, made to sample its products as the keys say: the keys of a rule, `policy`,
    `keep`, `min_k`, `scope`, `center`, `memory` and the policy's own options, or a table per product.

    >>> sampled(nn.Linear(784, 1024), site="fc1", policy="topk", keep=0.5, scope="forward")

    Raises RequestError for a layer that no kind recognises, and for keys that no rule could have."""
    kind = recognise(module=module)
    if kind is None:
        raise RequestError(
            f"{type(module).__name__} is not a layer whose products can be sampled",
            where=f"site {site}",
            remedy="fxapprox inspect lists the kinds of layers that can",
        )
    choice = _choice(site, keys)
    if choice is not None:
        sample_module(module, site=site, kind=kind, choice=choice)
    return module


def _choice(site: str, keys: Mapping[str, Any]) -> Choice | None:
    choice, problems = read_choice(keys)
    raise_problems(problems, f"the options of site {site}")
    return choice


class FunctionSite(SiteModule):
    """A call of a function (`torch.matmul`, `F.linear` …) whose products are sampled in training.

    Stands as a child in the module whose forward holds the call, so that `.train()` and `.eval()`
    reach it; has no parameters and adds nothing to a state_dict."""

    def __init__(
        self, function: Callable[..., Any], *, site: str, kind: Kind, choices: Mapping[str, Choice]
    ) -> None:
        """`choices` by part; a call that holds one product has the part ""."""
        super().__init__()
        self.function = function
        self._fxapprox = Sites.of(kind, site, choices)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = Call(args, kwargs, function=self.function)
        return self._fxapprox.run(call) if self.training else self._fxapprox.evaluate(call)

    def extra_repr(self) -> str:
        return f"{getattr(self.function, '__name__', self.function)}, {self._fxapprox}"


def sampled_function(
    function: Callable[..., Any],
    *,
    site: str,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    **keys: Any,
) -> FunctionSite:
    """A FunctionSite from the keys of a rule (see `sampled`); `parts` holds such keys for each product of
    a call with several: `parts={"scores": {"policy": "topk", "keep": 0.5}}`."""
    kind = recognise(function=function)
    if kind is None:
        name = getattr(function, "__name__", str(function))
        raise RequestError(
            f"{name} is not a function whose products can be sampled",
            where=f"site {site}",
            remedy="fxapprox inspect lists the kinds of functions that can",
        )
    read = {part: _choice(site, own) for part, own in ({"": keys} if parts is None else parts).items()}
    choices = {part: choice for part, choice in read.items() if choice is not None}
    return FunctionSite(function, site=site, kind=kind, choices=choices)
