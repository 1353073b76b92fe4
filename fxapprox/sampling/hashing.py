"""Hash tables that find the rows of a weight with large inner products: asymmetric sign hashes.

Shrivastava and Li 2015 ("Improved asymmetric locality sensitive hashing for maximum inner product
search"): all rows scaled by one factor so that the largest norm is U < 1, P(w) = [w; ½ − ‖w‖²; ½ − ‖w‖⁴;
…; ½ − ‖w‖^(2^m)], Q(x) = [x; 0; …; 0]. ‖P(w)‖² = m/4 + ‖w‖^(2^(m+1)) is nearly the same for every row, so
the angle between P(w) and Q(x) falls as w·x grows, and the sign of a random projection, which is the
hash that belongs to angles, collides with probability 1 − angle/π."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .streams import Draw

GENERATIONS = 8
"""Tables that are remembered for forward passes which gradient checkpointing repeats."""


@dataclass(frozen=True)
class Tables:
    """L tables of K-bit signatures over the rows of a weight `[nodes, in]`, as it was when they were built.

    `planes` `[in + m, L·K]` are the projections, `codes` `[L, nodes]` the rows' signatures; `order` lists
    each table's rows bucket after bucket, `starts` `[L, 2^K + 1]` where each bucket begins."""

    planes: Tensor
    codes: Tensor
    order: Tensor
    starts: Tensor
    bits: int

    @classmethod
    def build(cls, weight: Tensor, K: int, L: int, m: int, U: float, numbers: torch.Generator) -> Tables:
        """Tables over the rows; the signatures are one matrix product."""
        rows = transformed_rows(weight, m, U)
        planes = torch.randn(rows.shape[1], L * K, generator=numbers).to(rows)
        return cls.of(planes, signatures(rows, planes, K), K)

    @classmethod
    def of(cls, planes: Tensor, codes: Tensor, K: int) -> Tables:
        sorted_codes, order = codes.sort(stable=True, dim=-1)
        buckets = torch.arange(2**K + 1, device=codes.device).expand(len(codes), -1).contiguous()
        return cls(planes, codes, order, torch.searchsorted(sorted_codes, buckets), K)

    def signatures_of(self, inputs: Tensor) -> Tensor:
        """Signatures `[L, rows]` of inputs `[rows, in]`; the zeros of Q(x) meet no projection."""
        wide = inputs.to(self.planes.dtype)
        return signatures(wide, self.planes[: inputs.shape[1]], self.bits)

    def votes(self, queries: Tensor) -> Tensor:
        """In how many tables a row of the weight lies in the bucket of each example: float32 `[rows, nodes]`,
        by looking up the buckets only."""
        tables, rows = queries.shape
        nodes = self.codes.shape[1]
        first = self.starts.gather(1, queries)
        counts = (self.starts.gather(1, queries + 1) - first).reshape(-1)
        ends = counts.cumsum(0)
        # positions within `order`: first, first + 1, … of every bucket looked up, one bucket after the other
        base = torch.arange(tables, device=queries.device).unsqueeze(1) * nodes + first
        shift = (base.reshape(-1) - (ends - counts)).repeat_interleave(counts)
        found = self.order.reshape(-1)[torch.arange(len(shift), device=shift.device) + shift]
        example = torch.arange(rows, device=queries.device).repeat(tables).repeat_interleave(counts)
        votes = torch.zeros(rows * nodes, device=queries.device)
        return votes.index_add_(0, example * nodes + found, votes.new_ones(len(found))).view(rows, nodes)

    def votes_of_all(self, queries: Tensor) -> Tensor:
        """The same, summed over the examples: `[nodes]`, with no step that takes rows × nodes."""
        counts = queries.new_zeros(len(queries), 2**self.bits)
        counts.scatter_add_(1, queries, torch.ones_like(queries))
        return counts.gather(1, self.codes).sum(0).float()


class SiteTables:
    """The tables of one site, and how many examples it has seen. Copies and pickles begin without tables, and
    so does a weight that is loaded, moved or cast: the next forward pass builds them."""

    def __init__(self, seen: int = 0) -> None:
        self.seen = seen
        self._built = 0  # examples seen when the newest tables were built
        self._last = -1  # number of the newest draw
        self._resumed: Mapping[str, Any] | None = None  # tables of a run state, not used by a forward yet
        self._generations: deque[tuple[int, Tables]] = deque(maxlen=GENERATIONS)  # with their first draw

    def __reduce__(self) -> tuple[type[SiteTables], tuple[int]]:
        return SiteTables, (self.seen,)

    def forget(self) -> None:
        self._generations.clear()

    def tables(self, draw: Draw, inputs: Tensor, every: int, build: Callable[[], Tables]) -> Tables:
        """The tables for a call on `inputs`: those it used the first time if it is repeated, else new ones
        where the newest have served `every` examples."""
        if draw.again and self._generations:
            fitting = (tables for first, tables in reversed(self._generations) if first <= draw.number)
            return next(fitting, self._generations[0][1])
        if draw.number <= self._last and self._generations:  # seeded anew: numbers have started over
            self._generations = deque([(0, self._generations[-1][1])], maxlen=GENERATIONS)
        if self._resumed is not None:
            planes, codes = (self._resumed[name].to(inputs.device) for name in ("planes", "codes"))
            self._generations = deque(
                [(0, Tables.of(planes, codes, self._resumed["bits"]))], maxlen=GENERATIONS
            )
            self._resumed = None
        if not self._generations or self.seen - self._built >= every:
            self._generations.append((draw.number, build()))
            self._built = self.seen
        self.seen += len(inputs)
        self._last = draw.number
        return self._generations[-1][1]

    def state(self) -> dict[str, Any]:
        told: dict[str, Any] = {"seen": self.seen, "built": self._built}
        if self._resumed is not None:
            told |= {name: self._resumed[name] for name in ("planes", "codes", "bits")}
        elif self._generations:
            tables = self._generations[-1][1]
            told |= {"planes": tables.planes.clone(), "codes": tables.codes.clone(), "bits": tables.bits}
        return told

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up the tables of the run that is resumed; a weight loaded later does not make them stale."""
        self.__init__(state["seen"])  # type: ignore[misc]
        self._built = state["built"]
        self._resumed = dict(state) if "codes" in state else None


def transformed_rows(weight: Tensor, m: int, U: float) -> Tensor:
    """P(w) of every row: `[nodes, in + m]`, float32 (float64 for float64)."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    norms = wide.norm(dim=1, keepdim=True)
    largest = norms.amax().clamp(min=torch.finfo(wide.dtype).tiny)
    powers = (norms * (U / largest)) ** torch.tensor([2.0**i for i in range(1, m + 1)]).to(norms)
    return torch.cat([wide * (U / largest), 0.5 - powers], dim=1)


def signatures(vectors: Tensor, planes: Tensor, K: int) -> Tensor:
    """The sign bits of all projections packed into numbers below 2^K: int64 `[L, vectors]`."""
    bits = (vectors @ planes > 0).view(len(vectors), planes.shape[1] // K, K)
    return (bits * (1 << torch.arange(K, device=bits.device))).sum(-1).t().contiguous()


def collision_probability(weight: Tensor, inputs: Tensor, m: int, U: float) -> Tensor:
    """The probability `[rows, nodes]` that one bit of a row's and an input's signatures is the same."""
    rows = transformed_rows(weight, m, U).double()
    cosine = inputs.double() @ rows[:, : inputs.shape[1]].t()
    cosine = cosine / (inputs.double().norm(dim=1, keepdim=True) * rows.norm(dim=1))
    return 1 - cosine.clamp(-1, 1).arccos() / math.pi
