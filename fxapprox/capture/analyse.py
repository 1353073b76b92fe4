"""From recognised calls and the operator graph to sites: order, sharing, neighbours, FLOPs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import networkx as nx
from torch import nn

from ..sites import PRODUCTS, Product, ProductName, Site
from ._types import Edge, Operator, SiteCall, Traced

# With a residual stream every earlier block reaches the next layer directly; the latest few say what
# there is to know, and keep the time linear in the number of operators.
MOST_NEIGHBOURS = 8


def sites_of(traced: Traced, model: nn.Module) -> tuple[Site, ...]:
    """The sites of a traced model in the order the forward runs them.

    `depth` counts the sites on the longest path before a site, `height` those on the longest path after
    it; refused and opt-in sites count, because rules that select by depth should not shift when a rule
    names an opt-in kind. Parts of one call follow each other. `after` holds the (at most
    `MOST_NEIGHBOURS`, latest first in depth) sites whose results reach a site through no other site.
    Time and memory are linear in operators and edges."""
    at = defaultdict(list)
    for call in traced.calls:
        at[call.operator].append(call)
    graph = acyclic_graph(traced.operators, traced.edges)
    depth = _levels(graph, at)
    height = _levels(graph.reverse(copy=False), at)
    after = _neighbours(graph, at, depth)
    norms = _norms(graph, traced.operators, model)
    weights = _weight_identities(traced.calls, model)
    used = Counter(weights.values())
    sites = []
    for call in traced.calls:
        parts = at[call.operator]
        place = parts.index(call)
        sites.append(
            Site(
                id=call.id, kind=call.kind, owner=call.owner, op=call.op, call=call.call, part=call.part,
                products=_products(call),
                input_shape=call.input_shape, weight_shape=call.weight_shape, output_shape=call.output_shape,
                dtype=call.dtype,
                depth=depth.get(call.operator, 0) + place,
                height=height.get(call.operator, 0) + len(parts) - 1 - place,
                weight=call.weight,
                shared=call.id in weights and used[weights[call.id]] > 1,
                calls=call.calls, source=call.source, refusal=call.refusal, opt_in=call.opt_in,
                after=(parts[place - 1].id,) if place else after.get(call.operator, ()),
                norm_after=norms.get(call.operator),
            )
        )  # fmt: skip
    return tuple(sites)


def acyclic_graph(operators: Sequence[Operator], edges: Sequence[Edge]) -> nx.DiGraph:
    """The operator graph. A module that runs more than once is one operator, so its results can reach
    itself: edges against the order of first execution are left out where there is a cycle."""
    graph = nx.DiGraph()
    graph.add_nodes_from(operator.id for operator in operators)
    graph.add_edges_from((edge.source, edge.target) for edge in edges if edge.source != edge.target)
    if not nx.is_directed_acyclic_graph(graph):
        order = {node: position for position, node in enumerate(graph)}
        backwards = [(one, other) for one, other in graph.edges if order[one] > order[other]]
        graph.remove_edges_from(backwards)
    return graph


def _levels(graph: nx.DiGraph, at: Mapping[str, list[SiteCall]]) -> dict[str, int]:
    """Operator → sites on the longest path that ends before it."""
    level: dict[str, int] = {}
    for node in nx.topological_sort(graph):
        level[node] = max((level[one] + len(at.get(one, ())) for one in graph.predecessors(node)), default=0)
    return level


def _neighbours(
    graph: nx.DiGraph, at: Mapping[str, list[SiteCall]], depth: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """Operator → ids of the sites that reach it through no other site, the deepest first."""
    rank: dict[str, int] = {}
    before: dict[str, tuple[str, ...]] = {}
    for node in nx.topological_sort(graph):
        found: set[str] = set()
        for one in graph.predecessors(node):
            found.update((at[one][-1].id,) if at.get(one) else before[one])
        before[node] = tuple(sorted(found, key=lambda site: (-rank[site], site))[:MOST_NEIGHBOURS])
        for place, call in enumerate(at.get(node, ())):
            rank[call.id] = depth[node] + place
    return before


def _norms(graph: nx.DiGraph, operators: Sequence[Operator], model: nn.Module) -> dict[str, str]:
    """Operator → the batch normalisation that reads its result directly."""
    modules = dict(model.named_modules(remove_duplicate=False))
    norms = {
        operator.id
        for operator in operators
        if operator.op == "batch_norm"
        or isinstance(modules.get(operator.id.partition(":")[0]), nn.modules.batchnorm._BatchNorm)
    }
    return {one: node for node in graph if node in norms for one in graph.predecessors(node)}


def _weight_identities(calls: Sequence[SiteCall], model: nn.Module) -> dict[str, object]:
    """Site id → what its weight is, equal for sites that share one."""
    identity = {name: id(tensor) for name, tensor in model.named_parameters(remove_duplicate=False)}
    # a computed weight (parametrized, standardised) has a name but is no parameter
    return {call.id: identity.get(call.weight, call.weight) for call in calls if call.weight is not None}


def _products(call: SiteCall) -> dict[ProductName, Product]:
    """All three products. One that is never sampled has no pairs to choose from, but costs FLOPs, too."""
    needed = {"forward": True, "grad_input": call.needs_grad[0], "grad_weight": call.needs_grad[1]}
    products = {}
    for name in PRODUCTS:
        groups, pairs, over = call.sizes.get(name, (1, 0, ""))
        products[name] = Product(pairs, groups, call.flops * call.calls if needed[name] else 0, over)
    return products
