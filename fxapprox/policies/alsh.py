"""`alsh`: the output nodes that hash tables find for the input."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from ..errors import RequestError
from ..sampling.draws import largest
from ..sampling.hashing import SiteTables, Tables
from ..sites import ProductName, Site
from ._base import Stream
from ._nodes import Active, Layer, NodePolicy, node_policy
from ._options import require_one_of


@node_policy(
    "alsh",
    source="Spring and Shrivastava 2017; Ebrahimi et al. 2023, section 4.2",
    unbiased=False,
    random=True,
    scores="hash",
    sized_by=("max_active",),
)
@dataclass(frozen=True)
class Alsh(NodePolicy):
    """Compute the nodes whose row of the weight collides with the input in a hash table: those that
    probably have a large inner product with it.

    Sign hashes after the transform that belongs to them (`sampling/hashing.py`). An input's set is the union
    of its L buckets, cut to the k = max_active·nodes that most tables agree on, and filled at random up to k.
    Linear layers only. Unscaled, biased.

    Options:
        K, L: bits of a signature, and tables.
        m, U: terms of the transform, and the norm that the longest row is scaled to.
        max_active: share of the nodes that are computed.
        active: "example", a set for each example as in the paper; or "union", one for the batch: the k nodes
            that most examples' buckets hold. Their rows are gathered once, so "union" is far faster; with
            one example the two are the same.
        early_rebuild, early, rebuild: tables are built anew after every `early_rebuild` examples up to
            example `early`, then after every `rebuild`.
    """

    K: int = 6
    L: int = 5
    m: int = 3
    U: float = 0.83
    max_active: float = 0.05
    active: Literal["example", "union"] = "example"
    early_rebuild: int = 100
    early: int = 10_000
    rebuild: int = 1_000

    def __post_init__(self) -> None:
        require_one_of("alsh", "active", self.active, ("example", "union"))
        ranges = (
            ("K", 1 <= self.K <= 16, "1 to 16"),
            ("L", self.L >= 1, "at least 1"),
            ("m", 1 <= self.m <= 8, "1 to 8"),
            ("U", 0 < self.U < 1, "0 < U < 1"),
            ("max_active", 0 < self.max_active <= 1, "0 < max_active <= 1"),
            ("early_rebuild", self.early_rebuild >= 1, "at least 1"),
            ("early", self.early >= 0, "at least 0"),
            ("rebuild", self.rebuild >= 1, "at least 1"),
        )
        for option, holds, wanted in ranges:
            if not holds:
                value = getattr(self, option)
                raise RequestError(
                    f"policy 'alsh': {option} = {value} is not allowed", remedy=f"wanted {wanted}"
                )

    @property
    def own_keep(self) -> float:
        return float(self.max_active)

    def work(self, product: ProductName, k: int, n: int, rows: int) -> float:
        """The active share; forward also the inputs' signatures, and those of the rows at the later rate of
        rebuilding."""
        hashing = self.K * self.L * (1 / n + 1 / self.rebuild)
        return k / n + (hashing if product == "forward" else 0.0)

    def refuses(self, site: Site) -> str | None:
        if reason := super().refuses(site):
            return reason
        groups = site.products["grad_input"].groups
        if len(site.weight_shape) == 2 and len(site.input_shape) == 2 and groups == 1:
            return None
        if "conv" in site.kind:
            return (
                f"policy 'alsh' serves linear layers only, and this is {site.op}: a convolution's node sees "
                "few inputs, and the hash tables do not find it (Ebrahimi et al. 2023, section 7)"
            )
        shape = "×".join(map(str, site.weight_shape))
        return (
            f"policy 'alsh' serves linear layers only, whose nodes are rows of a matrix, and {site.op} here "
            f"has a weight of {shape}" + (f" in {groups} groups" if groups > 1 else "")
        )

    def keeps(self) -> SiteTables:
        return SiteTables()

    def choose(self, layer: Layer, k: int, stream: Stream) -> Active:
        kept: SiteTables = layer.kept
        every = self.early_rebuild if kept.seen < self.early else self.rebuild
        tables = kept.tables(layer.draw, layer.inputs, every, partial(self._build, layer))
        queries = tables.signatures_of(layer.inputs)
        each = self.active == "example"
        votes = tables.votes(queries) if each else tables.votes_of_all(queries).unsqueeze(0)
        # numbers below 1 order nodes with equal votes, those with none among them, at random
        ties = torch.rand(votes.shape, generator=stream.generator()).to(votes.device)
        return Active(largest(votes + ties, k), each=each)

    def _build(self, layer: Layer) -> Tables:
        numbers = layer.draw.stream("tables").generator()
        return Tables.build(layer.weight, self.K, self.L, self.m, self.U, numbers)
