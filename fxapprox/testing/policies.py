"""The contract of a policy, as plain functions: `check_policy(MyPolicy)` in a test of yours runs all of it.

Each check takes a policy instance and raises AssertionError with the scores, k and values that broke
the contract. All draws come from fixed seeds, so a check that passes once passes always; the
statistical ones allow a false alarm with probability `ALARM` over all their comparisons together.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, get_args

import torch
from torch import Tensor

from ..policies import SCOPES, AnyPolicy, NodePolicy, Policy, Selection
from ..policies._base import Scores, Size

ALARM = 1e-6
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class SeededStream:
    """A stream with a fixed seed: each `generator()` starts anew. `device` is where it draws."""

    seed: int
    device: str = "cpu"

    def generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)


@dataclass(frozen=True)
class _NoStream:
    """What a deterministic policy gets: asking it for numbers breaks the contract."""

    policy: str

    def generator(self) -> torch.Generator:
        raise AssertionError(f"{self.policy} is declared random=False but asks its stream for a generator")


def check_policy(policy: AnyPolicy | type[AnyPolicy]) -> None:
    """Run every check over a policy, given as a class (checked with its default options) or an instance."""
    instance = policy() if isinstance(policy, type) else policy
    for check in checks_of(instance):
        check(instance)


def checks_of(policy: AnyPolicy) -> tuple[Callable[[Any], None], ...]:
    """The contract of a policy over pairs, or of one over output nodes."""
    from . import nodes  # it needs what stands here

    return nodes.CHECKS if isinstance(policy, NodePolicy) else CHECKS


def score_rows(n: int = 24, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Rows of scores `[n]` that are easy to get wrong, by what is special about them."""
    spread = torch.linspace(-1.0, 1.0, n, dtype=torch.float64)
    last = torch.arange(n) >= n - 1 - n // 3
    top = torch.arange(n) == n // 2
    largest = torch.finfo(dtype).max
    rows = {
        "even": spread.mul(0.3).exp(),
        "spread": spread.mul(3.0).exp(),
        "ties": torch.ones(n, dtype=torch.float64),
        "two levels": torch.where(top, 2.0, 1.0).double(),
        "zeros": spread.exp().masked_fill(last, 0.0),
        "all zero": torch.zeros(n, dtype=torch.float64),
        "one positive": torch.where(top, 3.0, 0.0).double(),
        "one dominating": torch.where(top, 100.0, spread.exp()),
        "huge range": spread.mul(60.0).exp(),
        "largest numbers": spread.mul(0.5).exp() / 4 * largest,
        "smallest numbers": spread.mul(0.5).exp() * torch.finfo(dtype).tiny,
    }
    return {name: row.to(dtype) for name, row in rows.items()}


def sizes(n: int) -> tuple[int, ...]:
    """The k that are tried on a row of n: the ends of what is allowed and the middle."""
    return tuple(sorted({1, 2, n // 2, n - 2, n - 1} & set(range(1, n))))


def check_facts(policy: AnyPolicy) -> None:
    """The class was registered with its facts, and its options are plain and survive every round trip."""
    name = type(policy).__name__
    for fact, kind in (("name", str), ("source", str), ("unbiased", bool), ("random", bool)):
        value = getattr(policy, fact, None)
        require(isinstance(value, kind) and value != "", f"{name}.{fact} = {value!r} is no {kind.__name__}")
    for fact, known in (("scores", get_args(Scores)), ("size", get_args(Size))):
        require(getattr(policy, fact) in known, f"{name}.{fact} = {getattr(policy, fact)!r}, known: {known}")
    declared = getattr(policy, "__dataclass_fields__", None)
    require(declared is not None, f"{name} is no dataclass: its fields are its options")
    require(
        bool(policy.scopes) and set(policy.scopes) <= set(SCOPES),
        f"{name}.scopes = {policy.scopes!r}, known: {SCOPES}",
    )
    strange = set(policy.sized_by) - set(declared or ())
    require(not strange, f"{name}.sized_by names what is no option: {', '.join(sorted(strange))}")
    own = policy.own_keep
    require(
        (own is not None) == bool(policy.sized_by), f"{name}.own_keep = {own!r}, sized_by {policy.sized_by!r}"
    )
    require(own is None or 0 < own <= 1, f"{name}.own_keep = {own!r} is outside 0 < keep <= 1")
    options = {option: getattr(policy, option) for option in declared or ()}
    for option, value in options.items():
        require(
            isinstance(value, (bool, int, float, str)),
            f"{name}.{option} = {value!r}: plans are saved as TOML, so options are bool, int, float or str",
        )
    require(hash(policy) == hash(type(policy)(**options)), f"{name} is not hashed by its options: freeze it")
    try:
        pickled = pickle.loads(pickle.dumps(policy))
    except Exception as error:
        raise AssertionError(f"{name} cannot be pickled: define it at the top of a module") from error
    for how, copy in (("options", type(policy)(**options)), ("pickle", pickled)):
        same = copy == policy and copy.unbiased == policy.unbiased
        require(same, f"{name} differs after a copy by {how}: {copy!r}")


def check_selection(policy: Policy) -> None:
    """Index: int64, in range, ascending, k of them; scale: none, or finite and not negative."""
    for dtype in DTYPES:
        for n in (2, 3, 24):
            for label, row in score_rows(n, dtype).items():
                for k in sizes(n):
                    scores = row.repeat(3, 1)
                    before = scores.clone()
                    selection = policy.select(scores, k, stream_of(policy, 1))
                    where = f"{policy.name} on {label!r} {dtype} n={n} k={k}"
                    require(torch.equal(scores, before), f"{where}: changed the scores it was given")
                    _check_index(policy, selection, scores, k, where)
                    _check_scale(policy, selection, scores, where)


def _check_index(policy: Policy, selection: Selection, scores: Tensor, k: int, where: str) -> None:
    index, (groups, n) = selection.index, scores.shape
    shape = tuple(index.shape)
    require(index.dtype == torch.int64, f"{where}: index is {index.dtype}, not int64")
    require(len(shape) == 2 and shape[0] == groups, f"{where}: index is {shape} for {groups} groups")
    require(bool(((index >= 0) & (index < n)).all()), f"{where}: index out of 0 … {n - 1}: {index.tolist()}")
    steps = index.diff(dim=-1)
    require(bool((steps >= 0).all()), f"{where}: index not ascending: {index.tolist()}")
    if selection.unique:
        require(bool((steps > 0).all()), f"{where}: unique=True, but a pair comes twice: {index.tolist()}")
    if policy.size == "about k":
        require(selection.scale is not None, f"{where}: a random size needs a scale, 0 for what pads")
    else:
        wanted = n if policy.size == "all" else k
        require(shape[1] == wanted, f"{where}: keeps {shape[1]} pairs, not {wanted} (size={policy.size!r})")


def _check_scale(policy: Policy, selection: Selection, scores: Tensor, where: str) -> None:
    scale = selection.scale
    if scale is None:
        return
    shape = tuple(selection.index.shape)
    require(tuple(scale.shape) == shape, f"{where}: scale is {tuple(scale.shape)}, index {shape}")
    require(scale.dtype == scores.dtype, f"{where}: scale is {scale.dtype}, scores are {scores.dtype}")
    require(bool(scale.isfinite().all()), f"{where}: scale not finite: {scale.tolist()}")
    require(bool((scale >= 0).all()), f"{where}: scale negative: {scale.tolist()}")
    if policy.size != "about k":
        require(bool((scale > 0).all()), f"{where}: scale 0 outside a random size: {scale.tolist()}")


def check_randomness(policy: Policy) -> None:
    """One seed, one draw; another seed, another; rows differ; the global generator is left alone."""
    scores = score_rows(64)["even"].repeat(32, 1)
    state = torch.get_rng_state()
    first, again, other = (policy.select(scores, 16, stream_of(policy, seed)) for seed in (1, 1, 2))
    require(torch.equal(state, torch.get_rng_state()), f"{policy.name} draws from the global generator")
    require(_same(first, again), f"{policy.name}: the same seed gave two different draws")
    if policy.random:
        require(not _same(first, other), f"{policy.name} is declared random=True: two seeds gave one draw")
        rows = {tuple(row) for row in first.index.tolist()}
        require(len(rows) > 16, f"{policy.name}: 32 groups of equal scores share {len(rows)} draws")


def check_groups(policy: Policy) -> None:
    """Every group is served by its own scores: pairs of score 0 are left out, beside whatever other rows."""
    if policy.scores == "none":
        return
    rows = score_rows(24)
    scores = torch.stack([rows["zeros"], rows["huge range"], rows["zeros"].flip(0), rows["all zero"]])
    selection = policy.select(scores, 6, stream_of(policy, 3))
    index, scale = selection.index, selection.scale
    for group in (0, 2):
        kept = index[group] if scale is None else index[group][scale[group] > 0]
        require(
            bool((scores[group][kept] > 0).all()),
            f"{policy.name}: group {group} keeps pairs of score 0 beside 15 positive ones: {kept.tolist()}",
        )
    if not policy.random:
        alone = torch.cat([policy.select(row[None], 6, stream_of(policy, 3)).index for row in scores])
        require(torch.equal(index, alone), f"{policy.name}: what a group keeps depends on other groups")


def check_mean_size(policy: Policy) -> None:
    """A random size has mean k (z-test over 4,000 draws per row of scores)."""
    if policy.size != "about k":
        return
    cases = [(label, row, k) for label, row in score_rows().items() for k in sizes(row.numel())]
    for label, row, k in cases:
        selection = policy.select(row.repeat(4000, 1), k, stream_of(policy, 4))
        assert selection.scale is not None
        kept = (selection.scale > 0).sum(-1, keepdim=True).double()
        worst = worst_z(kept, torch.tensor([float(k)]), slack=1e-9)
        mean = float(kept.mean())
        require(worst < bound_of(len(cases)), f"{policy.name} on {label!r} k={k}: keeps {mean} on average")


def check_unbiased(policy: Policy) -> None:
    """E[Σ_kept z_i·a_i·b_i] = Σ a_i·b_i, if the policy says so: a z-test over 8,000 draws of 12 products
    per row of scores and k, whose terms are ±s_i (pairs of score 0 contribute nothing)."""
    if not policy.unbiased:
        return
    products = 12
    rows = [*score_rows(24).items(), *((f"{label}, n=2", row) for label, row in score_rows(2).items())]
    # a huge range has pairs too rare to be seen in so few draws
    cases = [(label, row, k) for label, row in rows if "huge" not in label for k in sizes(row.numel())]
    bound = bound_of(len(cases) * products)
    for seed, (label, row, k) in enumerate(cases):
        signs = torch.randn(row.numel(), products, generator=SeededStream(seed).generator()).sign()
        terms = signs.double() * (row.double() / row.double().max().clamp(min=1e-300))[:, None]
        scores = row.repeat(2000, 1)
        estimate = torch.cat([_estimates(policy, scores, k, terms, 4 * seed + i) for i in range(4)])
        exact = terms.sum(0)
        worst = worst_z(estimate, exact, slack=1e-6 * float(terms.abs().sum(0).max()))  # float32 scales
        require(
            worst < bound,
            f"{policy.name} is declared unbiased, but on {label!r} k={k} a mean is {worst:.1f} standard"
            f" errors off (bound {bound:.1f}): {estimate.mean(0).tolist()} for {exact.tolist()}",
        )


CHECKS: tuple[Callable[[Policy], None], ...] = (
    check_facts,
    check_selection,
    check_randomness,
    check_groups,
    check_mean_size,
    check_unbiased,
)


def _estimates(policy: Policy, scores: Tensor, k: int, terms: Tensor, seed: int) -> Tensor:
    """Σ_kept z_i·term_i of every group: `[groups, products]`."""
    selection = policy.select(scores, k, stream_of(policy, seed))
    ones = torch.ones_like(selection.index, dtype=torch.float64)
    scale = ones if selection.scale is None else selection.scale.double()
    weights = torch.zeros(scores.shape, dtype=torch.float64).scatter_add_(1, selection.index, scale)
    return weights @ terms


def worst_z(samples: Tensor, exact: Tensor, slack: float) -> float:
    """The largest |mean − exact| in standard errors, over columns; differences up to `slack` count as 0."""
    error = ((samples.mean(0) - exact).abs() - slack).clamp(min=0.0)
    spread = samples.std(0) / len(samples) ** 0.5
    return float((error / spread.clamp(min=1e-300)).max())


def bound_of(comparisons: int) -> float:
    """The z that `comparisons` two-sided tests together exceed with probability ALARM."""
    return NormalDist().inv_cdf(1 - ALARM / (2 * comparisons))


def stream_of(policy: AnyPolicy, seed: int) -> SeededStream | _NoStream:
    return SeededStream(seed) if policy.random else _NoStream(policy.name)


def _same(first: Selection, second: Selection) -> bool:
    if not torch.equal(first.index, second.index) or (first.scale is None) != (second.scale is None):
        return False
    return first.scale is None or second.scale is None or torch.equal(first.scale, second.scale)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
