"""How much of each product the draws of a plan keep, measured on the example inputs: [E] Theorem 2's c.

The theorem calls c the sum of a layer's active terms over that of its inactive ones, for one output with
linear activations. Here, with y a site's exact product on the batch (without bias) and ŷ what the plan's
policy gives for it, c = ‖ŷ‖ / ‖y − ŷ‖, the norms over all outputs of the site and all of its calls. Where
kept pairs are not scaled ŷ is the active sum and y − ŷ the inactive one: for one output, the theorem's c.
Where they are (pps, crs …), or with `center`, y − ŷ is the error of that draw, which is what grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..advice import Ratios
from ..capture._types import Capture, Inputs
from ..capture.compare import leaves
from ..capture.rng import kept_random_state, seed_all
from ..capture.trials import copied
from ..choices import Choice, Sampled
from ..kinds import Operation, Refusal
from ..plan import Decision, Plan
from ..sampling.streams import Draw
from ..schedules import Schedule
from .parts import Sites
from .substitute import carried_out

# One forward and about two more of its products: a second on one core (20 to 60 GFLOP/s in float32) …
FLOPS = 1e10
# … of which copying the model may take its share.
BYTES = 4e8

Energies = dict[str, tuple[float, float]]
"""Site id → (‖ŷ‖², ‖y − ŷ‖²), summed over calls."""


def ratios(capture: Capture, decisions: Sequence[Decision], *, costly: bool = False) -> Ratios:
    """c at the sites of these decisions, from one pass in which every product is exact.

    The pass is one of training (dropout, batch statistics) on a copy of the model, without gradients, from
    a seed of its own: the user's model, its buffers and the global random states stay as they are. Not
    measured, with the reason, where the example inputs hold no data, where the pass fails and, unless
    `costly`, where it would take more than about a second."""
    reason = _no_data(capture.inputs) or (None if costly else _too_costly(capture))
    if reason is not None:
        return Ratios(why_not=reason)
    energies: Energies = {}
    try:
        with kept_random_state(), torch.inference_mode(False), torch.no_grad():
            fewest = tuple(replace(decision, choice=_at_fewest(decision.choice)) for decision in decisions)
            model, _ = carried_out(capture, Plan(capture.origin, "", fewest))
            for module in model.modules():
                _watch(module, energies)
            model.train()
            given = copied(capture.inputs)
            seed_all(0)
            model(*given.args, **(given.kwargs or {}))
    except Exception as failure:  # a warning's number is not worth a failed rewrite; the message says why
        said = str(failure).splitlines()
        return Ratios(why_not=f"{type(failure).__name__}: {said[0] if said else ''}")
    found = {site_id: _ratio(*pair) for site_id, pair in energies.items()}
    return Ratios({site_id: ratio for site_id, ratio in found.items() if not math.isnan(ratio)})


def _at_fewest(choice: Choice | None) -> Choice | None:
    """The choice with a forward schedule held where it keeps fewest: that step's error is the largest."""
    if (
        choice is None
        or not isinstance(choice.forward, Sampled)
        or not isinstance(choice.forward.keep, Schedule)
    ):
        return choice
    return replace(choice, forward=replace(choice.forward, keep=choice.forward.keep.span[0]))


def _ratio(kept: float, missing: float) -> float:
    return math.sqrt(kept / missing) if missing else math.inf


def _no_data(inputs: Inputs) -> str | None:
    if inputs.drawn:
        return "the example inputs are random numbers (a file's example_inputs() may return a batch of data)"
    tensors = [one for _, one in leaves((inputs.args, inputs.kwargs or {})) if isinstance(one, Tensor)]
    if any(one.is_meta or isinstance(one, FakeTensor) for one in tensors):
        return "the example inputs hold no data"
    return None


def _too_costly(capture: Capture) -> str | None:
    flops = sum(site.products["forward"].flops for site in capture.sites)
    if flops > FLOPS:
        return f"a forward takes {flops:.2g} FLOPs, more than {FLOPS:.0g} (fxapprox advise measures it)"
    held = sum(tensor.nbytes for tensor in (*capture.model.parameters(), *capture.model.buffers()))
    if held > BYTES:
        return f"the model holds {held:.2g} bytes, more than {BYTES:.0g} (fxapprox advise measures it)"
    return None


@dataclass
class _Watched(Sites):
    """Sites whose products are exact, and compared with what they would be."""

    energies: Energies

    def _product(
        self, name: str, operation: Operation | Refusal, draws: Mapping[str, Draw] | None = None
    ) -> Tensor:
        if name in self.parts and isinstance(operation, Operation):
            bare = replace(operation, bias=None, finish=None)
            kept = super()._product(name, bare, draws)
            missing = bare.bilinear.forward(bare.left, bare.right, None) - kept
            before = self.energies.get(self.parts[name].site, (0.0, 0.0))
            self.energies[self.parts[name].site] = (before[0] + _energy(kept), before[1] + _energy(missing))
        return Sites(self.kind, {})._product(name, operation)


def _energy(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _watch(module: nn.Module, energies: Energies) -> None:
    """Make the sites of a module, and of the calls that stand in a container, compare themselves."""
    held = [one for one in vars(module).values() if isinstance(one, nn.Module)]
    for one in (module, *held):
        sites = vars(one).get("_fxapprox")
        if isinstance(sites, Sites):
            for part in sites.parts.values():
                part.clock = None  # as the first step keeps
            one.__dict__["_fxapprox"] = _Watched(sites.kind, sites.parts, energies)
