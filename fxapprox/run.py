"""What a training run holds besides parameters: how it is saved, and how it hears of the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from .errors import RequestError
from .passes.layers import sites_of
from .passes.parts import Part
from .sampling.memory import Pace

_SHOWN = 5  # sites that an error names; the rest are counted


def run_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What a sampled run needs to go on to the bit, besides the state_dicts of model and optimizer and the
    state of torch's generator: by site, the place in its random stream and in its keep schedule, and the
    rows in its memory.

    Plain dicts of ints and tensors, copied: `torch.save` takes it, `torch.load` with weights_only=True
    opens it. Under data parallelism every rank has its own. Raises RequestError for a model that does not
    sample."""
    return {site: part.state() for site, part in _parts(model).items()}


def load_run_state(model: nn.Module, state: Mapping[str, Mapping[str, Any]]) -> None:
    """Take up the run whose `run_state` this is: the model's next step is the one that run would have done.

    For a model rewritten the same way, in this process or another, or built from its emitted file; load
    the weights, the optimizer and torch's generator (`torch.set_rng_state`) too, in any order. A
    `torch.manual_seed` after this call starts the draws over, so seed before.
    Raises RequestError that lists the sites in which state and model differ; nothing is loaded then."""
    parts = _parts(model)
    differences = [f"{site}: in the state, not in the model" for site in state if site not in parts]
    differences += [f"{site}: in the model, not in the state" for site in parts if site not in state]
    differences += [
        f"{site}: {difference}"
        for site, part in parts.items()
        if site in state and (difference := part.unfit(state[site])) is not None
    ]
    if differences:
        shown, more = differences[:_SHOWN], len(differences) - _SHOWN
        raise RequestError(
            "the run state is that of another model or plan",
            remedy="\n  ".join([*shown, *([f"and {more} more"] if more > 0 else [])]),
        )
    for site, part in parts.items():
        part.load_state(state[site])


class Attachment:
    """A model's sites joined to an optimizer by `attach`; `remove()` parts them."""

    def __init__(self, parts: list[Part], optimizer: Optimizer, scaler: GradScaler | None = None) -> None:
        self.optimizer, self.scaler = optimizer, scaler
        self._parts = parts
        clocks = [part.clock for part in parts if part.clock is not None]
        self._hook = optimizer.register_step_post_hook(self._stepped) if clocks else None
        for part in parts:
            part.attachments.append(self)
        for clock in clocks:
            clock.driven = True

    def pace(self, parameter: Tensor) -> Pace | None:
        """How the parameter learns now, None where no group holds it.

        Looked up each time: `load_state_dict` replaces the groups, `add_param_group` adds some."""
        for group in self.optimizer.param_groups:
            if any(held is parameter for held in group["params"]):
                return Pace(float(group["lr"]), self.scaler.get_scale() if self.scaler else 1.0)
        return None

    def _stepped(self, *_: object) -> None:
        """The optimizer made a step: so do the clocks that follow it, the first of several."""
        for part in self._parts:
            if part.clock is not None and part.attachments[0] is self:
                part.clock.advance()

    def remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
        for part in self._parts:
            if self in part.attachments:
                part.attachments.remove(self)
            if part.clock is not None:
                part.clock.driven = bool(part.attachments)


def attach(model: nn.Module, optimizer: Optimizer, *, scaler: GradScaler | None = None) -> Attachment:
    """Let the sites of a model that samples follow its optimizer: the learning rate of the group that
    holds a site's weight, whatever schedule changes it, and the scale of the loss that a gradient scaler
    sets; and its steps, by which a keep that follows a schedule goes on (of several optimizers those of the
    first).

    Call it once, after both are made; several optimizers are attached one after the other. A copy of the
    model (deepcopy, pickle) is attached to none. Raises RequestError for a model that does not sample, and
    for an optimizer of another model's parameters."""
    parts = list(_parts(model).values())
    if not hasattr(optimizer, "param_groups"):
        raise RequestError(f"a {type(optimizer).__name__} is no optimizer: it has no param_groups")
    if any(part.clock for part in parts) and not hasattr(optimizer, "register_step_post_hook"):
        raise RequestError(
            f"a {type(optimizer).__name__} does not tell of its steps, which keep schedules follow",
            remedy="attach the torch.optim.Optimizer that it wraps",
        )
    if not trains(optimizer, model):
        raise RequestError(
            "the optimizer holds no parameter of this model",
            remedy="make it from the rewritten model's parameters: rewriting copies the model",
        )
    return Attachment(parts, optimizer, scaler)


def trains(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether the optimizer holds any parameter of the model."""
    own = {id(parameter) for parameter in model.parameters()}
    return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


def _parts(model: nn.Module) -> dict[str, Part]:
    """The model's sites that sample, by id."""
    found: dict[str, Part] = {}
    for sites in sites_of(model):
        for part in sites.parts.values():
            if found.setdefault(part.site, part) is not part:
                raise RequestError(
                    f"two sites of this model are called {part.site!r}",
                    remedy="it holds several rewritten models: pass each of them by itself",
                )
    if not found:
        raise RequestError(
            f"{type(model).__name__} does not sample", remedy="pass the model that fxapprox.rewrite returned"
        )
    return found
