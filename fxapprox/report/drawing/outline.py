"""What is drawn: the sites, the places where data meet, and the modules around them.

A ResNet-50 has some 175 operators, and its structure lies in 70 of them. Operators that are no sites
and stand in a chain (normalisation, activation, reshapes) are folded into the node before them where that
has no other reader, else into the node after them; a module without any site is one node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from ...capture._types import Edge, Operator
from ...capture.analyse import acyclic_graph

ROOT = ""


@dataclass
class Node:
    """One box, in the module `cluster`. `head` and `tail` are the operators folded into it, in order."""

    id: str
    cluster: str
    op: str
    shape: tuple[int, ...] | None
    sites: list[Mapping[str, Any]] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)

    @property
    def flops(self) -> int:
        return sum(site["flops"] for site in self.sites)


@dataclass(frozen=True)
class Outline:
    """Nodes by id, edges between them; `children`: cluster → ids of nodes and paths of clusters directly
    in it, in the order of execution; `above`: cluster → the cluster around it, None for the root ""."""

    nodes: Mapping[str, Node]
    edges: tuple[tuple[str, str], ...]
    children: Mapping[str, tuple[str, ...]]
    above: Mapping[str, str | None]

    def within(self, cluster: str) -> Iterator[Node]:
        """The nodes anywhere below a cluster."""
        for child in self.children[cluster]:
            if child in self.children:
                yield from self.within(child)
            else:
                yield self.nodes[child]

    def title(self, name: str) -> str:
        """A node's or cluster's name as seen from the cluster it stands in."""
        around = (self.above[name] if name in self.children else self.nodes[name].cluster) or ROOT
        return name.removeprefix(f"{around}.") if around else name


def outline(
    operators: Sequence[Operator], edges: Sequence[Edge], sites: Iterable[Mapping[str, Any]]
) -> Outline:
    """The outline of a captured model; `sites` are the site facts of a report."""
    graph = acyclic_graph(operators, edges)
    nodes = {
        # a layer's own path is its owner; its second run as `path:1` stands where the first does
        one.id: Node(
            one.id,
            parent(one.owner) if one.id.partition(":")[0] == one.owner else one.owner,
            one.op,
            one.shape,
        )
        for one in operators
    }
    _place_sites(nodes, operators, sites)
    _merge_modules_without_sites(graph, nodes)
    _fold_into_the_one_before(graph, nodes)
    _fold_into_the_one_after(graph, nodes)
    alone = [name for name in graph if not graph.degree(name) and not nodes[name].sites]
    graph.remove_nodes_from(alone if len(alone) < len(graph) else [])
    kept = {name: node for name, node in nodes.items() if name in graph}
    above = _clusters(graph, kept)
    return Outline(kept, tuple(graph.edges), _children(kept, above), above)


def parent(path: str) -> str:
    return path.rpartition(".")[0]


def prefixes(path: str) -> Iterator[str]:
    """The path and every module around it, the root last."""
    while path:
        yield path
        path = parent(path)
    yield ROOT


def _place_sites(
    nodes: Mapping[str, Node], operators: Sequence[Operator], sites: Iterable[Mapping[str, Any]]
) -> None:
    home = {one.site: one.id for one in operators if one.site is not None}
    for site in sites:
        # a call with several parts is one operator: `attn.sdpa_1` of `attn.sdpa_1.scores` and `.values`
        name = home.get(site["id"]) or home.get(parent(site["id"]))
        if name is not None:
            nodes[name].sites.append(site)


def _merge_modules_without_sites(graph: nx.DiGraph, nodes: Mapping[str, Node]) -> None:
    """Each outermost module that holds no site becomes one node, where that closes no cycle."""
    busy = {ROOT}
    for node in nodes.values():
        if node.sites:
            busy.update(prefixes(node.cluster))
    members: dict[str, list[str]] = {}
    for name, node in nodes.items():
        outermost = [path for path in prefixes(node.cluster) if path not in busy]
        if outermost:
            members.setdefault(outermost[-1], []).append(name)
    for path, (first, *rest) in members.items():
        if _closes_cycle(graph, {first, *rest}):
            continue
        for name in rest:
            _contract(graph, first, name)
        nodes[first].cluster, nodes[first].op = parent(path), path.rpartition(".")[2]
        nodes[first].shape = nodes[rest[-1] if rest else first].shape


def _closes_cycle(graph: nx.DiGraph, inside: set[str]) -> bool:
    """Whether data leave the set of nodes and come back into it."""
    out = {reader for name in inside for reader in graph.successors(name)} - inside
    into = {source for name in inside for source in graph.predecessors(name)} - inside
    seen, waiting = set(out), list(out)
    while waiting:
        name = waiting.pop()
        if name in into:
            return True
        fresh = [reader for reader in graph.successors(name) if reader not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return False


def _contract(graph: nx.DiGraph, into: str, name: str) -> None:
    edges = [(source, into) for source in graph.predecessors(name)]
    edges += [(into, target) for target in graph.successors(name)]
    graph.remove_node(name)
    graph.add_edges_from((one, other) for one, other in edges if one != other)


def _fold_into_the_one_before(graph: nx.DiGraph, nodes: Mapping[str, Node]) -> None:
    for name in list(nx.topological_sort(graph)):
        node = nodes[name]
        if node.sites or graph.in_degree(name) != 1:
            continue
        before = next(graph.predecessors(name))
        if graph.out_degree(before) == 1 and nodes[before].cluster == node.cluster:
            nodes[before].tail += [*node.head, node.op, *node.tail]
            nodes[before].shape = node.shape or nodes[before].shape
            _contract(graph, before, name)


def _fold_into_the_one_after(graph: nx.DiGraph, nodes: Mapping[str, Node]) -> None:
    for name in reversed(list(nx.topological_sort(graph))):
        node = nodes[name]
        if node.sites or graph.in_degree(name) > 1 or graph.out_degree(name) != 1:
            continue
        after = next(graph.successors(name))
        # what is made out of nothing (a mask, positions) belongs to its reader, wherever that stands
        if nodes[after].cluster == node.cluster or not graph.in_degree(name):
            nodes[after].head[:0] = [*node.head, node.op, *node.tail]
            _contract(graph, after, name)


# clusters


def _clusters(graph: nx.DiGraph, nodes: Mapping[str, Node]) -> dict[str, str | None]:
    """Each cluster that is drawn, and the one around it.

    A cluster with a single child is left out (the child's title tells its name), and one that data
    leave and enter again: no box around it could stand between its siblings."""
    above: dict[str, str | None] = {ROOT: None}
    for node in nodes.values():
        for path in prefixes(node.cluster):
            above[path] = parent(path) if path else None
    while True:
        children = _children(nodes, above)
        odd = [path for path, inside in children.items() if path and len(inside) < 2]
        odd = odd or _tangled(graph, nodes, above, children)
        if not odd:
            return above
        for path in odd:
            _dissolve(path, nodes, above)


def _children(nodes: Mapping[str, Node], above: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    inside: dict[str, dict[str, None]] = {path: {} for path in above}
    for name, node in nodes.items():
        child, path = name, node.cluster
        inside[path][child] = None
        while (around := above[path]) is not None:
            inside[around][path] = None
            path = around
    return {path: tuple(found) for path, found in inside.items()}


def _dissolve(path: str, nodes: Mapping[str, Node], above: dict[str, str | None]) -> None:
    around = above.pop(path)
    assert around is not None, "the root is never dissolved"
    for node in nodes.values():
        if node.cluster == path:
            node.cluster = around
    for inner, outer in above.items():
        if outer == path:
            above[inner] = around


def _tangled(
    graph: nx.DiGraph,
    nodes: Mapping[str, Node],
    above: Mapping[str, str | None],
    children: Mapping[str, tuple[str, ...]],
) -> list[str]:
    """Clusters that lie on a cycle among their siblings, the first level that has any."""
    levels: dict[str, nx.DiGraph] = {path: nx.DiGraph() for path in children}
    for one, other in graph.edges:
        first, second = chain(nodes[one], above), chain(nodes[other], above)
        common, a, b = meeting(one, first, other, second)
        levels[common].add_edge(a, b)
    for level in levels.values():
        for part in nx.strongly_connected_components(level):
            if len(part) > 1:
                return [name for name in part if name in children]
    return []


def chain(node: Node, above: Mapping[str, str | None]) -> list[str]:
    """The clusters around a node, the root first."""
    found: list[str] = []
    path: str | None = node.cluster
    while path is not None:
        found.append(path)
        path = above[path]
    return found[::-1]


def meeting(one: str, first: Sequence[str], other: str, second: Sequence[str]) -> tuple[str, str, str]:
    """(the innermost cluster around both nodes, its child on the way to each)."""
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] == second[shared]:
        shared += 1
    a = first[shared] if shared < len(first) else one
    b = second[shared] if shared < len(second) else other
    return first[shared - 1], a, b
