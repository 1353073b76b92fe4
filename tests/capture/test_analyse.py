"""Depth, height, sharing, neighbours and FLOPs of hand-made traces."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import networkx as nx
from counting import function_calls
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxapprox.capture._types import Edge, Operator, SiteCall, Traced
from fxapprox.capture.analyse import MOST_NEIGHBOURS, sites_of

CALL = SiteCall(
    id="", kind="linear", owner="", op="Linear", call=None, part="", operator="",
    sizes={"forward": (1, 8, "in features"), "grad_input": (1, 4, "out features"),
           "grad_weight": (1, 2, "batch")},
    flops=128, input_shape=(2, 8), weight_shape=(4, 8), output_shape=(2, 4), dtype="float32",
    needs_grad=(True, True), weight=None, calls=1, source=None, refusal=None, opt_in=False,
)  # fmt: skip


def site_call(name: str, operator: str | None = None, **facts: Any) -> SiteCall:
    return replace(CALL, id=name, operator=operator or name, owner=name, **facts)


def traced(calls: list[SiteCall], operators: list[str], edges: list[tuple[str, str]]) -> Traced:
    of = {call.operator: call.id for call in calls}
    nodes = tuple(Operator(name, name.split("_")[0], name, of.get(name), (2, 4)) for name in operators)
    return Traced("trace", tuple(calls), {}, (), nodes, tuple(Edge(*edge) for edge in edges))


def test_depth_and_height_count_sites_on_the_longest_path():
    #  a → relu → b → add → c        a → add (skip)
    calls = [site_call(name) for name in "abc"]
    edges = [("x", "a"), ("a", "relu"), ("relu", "b"), ("b", "add"), ("a", "add"), ("add", "c")]
    sites = sites_of(traced(calls, ["x", "a", "relu", "b", "add", "c"], edges), nn.Identity())
    assert [(site.depth, site.height) for site in sites] == [(0, 2), (1, 1), (2, 0)]
    assert [site.after for site in sites] == [(), ("a",), ("b", "a")]


def test_refused_and_opt_in_sites_count():
    calls = [site_call("a"), site_call("b", refusal="one channel per group"), site_call("c", opt_in=True),
             site_call("d")]  # fmt: skip
    sites = sites_of(traced(calls, list("abcd"), [("a", "b"), ("b", "c"), ("c", "d")]), nn.Identity())
    assert [site.depth for site in sites] == [0, 1, 2, 3]
    assert sites[1].refusal == "one channel per group"
    assert sites[2].opt_in


def test_parts_of_one_call_follow_each_other():
    calls = [
        site_call("q"),
        site_call("sdpa_1.scores", "sdpa_1", part="scores"),
        site_call("sdpa_1.values", "sdpa_1", part="values"),
        site_call("out"),
    ]
    sites = sites_of(
        traced(calls, ["q", "sdpa_1", "out"], [("q", "sdpa_1"), ("sdpa_1", "out")]), nn.Identity()
    )
    assert [(site.depth, site.height) for site in sites] == [(0, 3), (1, 2), (2, 1), (3, 0)]
    assert [site.after for site in sites] == [(), ("q",), ("sdpa_1.scores",), ("sdpa_1.values",)]


def test_a_module_that_runs_twice_makes_no_endless_path():
    calls = [site_call("a"), site_call("cell", calls=3)]
    sites = sites_of(
        traced(calls, ["a", "cell"], [("a", "cell"), ("cell", "cell"), ("cell", "a")]), nn.Identity()
    )
    assert [site.depth for site in sites] == [0, 1]
    assert sites[1].products["forward"].flops == 3 * 128


def test_products_that_no_gradient_needs_cost_nothing():
    (site,) = sites_of(traced([site_call("a", needs_grad=(False, True))], ["a"], []), nn.Identity())
    assert {name: product.flops for name, product in site.products.items()} == {
        "forward": 128,
        "grad_input": 0,
        "grad_weight": 128,
    }
    assert site.flops == 256


def test_a_weight_is_shared_by_identity_not_by_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.two.weight = self.one.weight

    calls = [site_call(name, weight=f"{name}.weight") for name in ("one", "two", "three")]
    sites = sites_of(traced(calls, ["one", "two", "three"], [("one", "two"), ("two", "three")]), Tied())
    assert [site.shared for site in sites] == [True, True, False]


def test_batch_norm_that_reads_a_site_directly():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    names = ["0", "1", "2", "3", "4"]
    sites = sites_of(traced([site_call("0"), site_call("3")], names, list(pairwise(names))), model)
    assert [site.norm_after for site in sites] == ["1", None]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_depth_agrees_with_the_longest_path_of_a_weighted_graph(data: st.DataObject):
    size = data.draw(st.integers(1, 12))
    names = [f"n{position}" for position in range(size)]
    pairs = [(one, other) for one in range(size) for other in range(one + 1, size)]
    edges = [(names[one], names[other]) for one, other in pairs if data.draw(st.booleans())]
    chosen = [name for name in names if data.draw(st.booleans())]
    sites = sites_of(traced([site_call(name) for name in chosen], names, edges), nn.Identity())
    graph = nx.DiGraph(edges)
    graph.add_nodes_from(names)
    for site in sites:
        into = [
            path for start in names if start != site.id for path in nx.all_simple_paths(graph, start, site.id)
        ]
        assert site.depth == max((len(set(path[:-1]) & set(chosen)) for path in into), default=0)
        out = [path for end in names if end != site.id for path in nx.all_simple_paths(graph, site.id, end)]
        assert site.height == max((len(set(path[1:]) & set(chosen)) for path in out), default=0)


def test_work_is_linear_in_the_number_of_operators():
    def work(blocks: int) -> int:
        calls, names, edges = [], ["x"], []
        stream = "x"
        for block in range(blocks):  # residual blocks: every earlier layer reaches every later one
            fc, add = f"fc_{block}", f"add_{block}"
            calls.append(site_call(fc))
            names += [fc, add]
            edges += [(stream, fc), (fc, add), (stream, add)]
            stream = add
        value = traced(calls, names, edges)
        sites = sites_of(value, nn.Identity())
        assert sites[-1].depth == blocks - 1
        assert len(sites[-1].after) == min(MOST_NEIGHBOURS, blocks - 1)
        return function_calls(lambda: sites_of(value, nn.Identity()))

    work(10)
    assert work(1000) < 1.3 * 4 * work(250)


def test_computed_weights_of_one_name_are_one_weight():
    calls = [site_call("a", weight="w"), site_call("b", weight="w"), site_call("c", weight="v")]
    sites = sites_of(traced(calls, ["a", "b", "c"], []), nn.Identity())
    assert [site.shared for site in sites] == [True, True, False]
