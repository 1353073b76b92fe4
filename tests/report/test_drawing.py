"""Drawings: what is in them, that nothing overlaps, and that they are well-formed."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fxapprox
from fxapprox.capture._types import Edge, Operator
from fxapprox.plan import Plan
from fxapprox.report import draw, facts
from fxapprox.report.drawing.items import Item
from fxapprox.report.drawing.layout import lay_out
from fxapprox.report.drawing.outline import outline
from fxapprox.report.drawing.scene import Scene, scene
from fxapprox.report.drawing.svg import fill

from .made import Captured, choice, decided, site

SVG = "{http://www.w3.org/2000/svg}"


def residual(blocks: int = 3) -> tuple[Captured, Plan]:
    """conv, bn, relu, then blocks of conv, bn, relu (one module, run twice), conv, add."""
    operators, edges, decisions = [], [], []
    last = ""

    def put(name: str, op: str, owner: str, *sources: str, is_site: bool = False) -> str:
        operators.append(Operator(name, op, owner, name if is_site else None, (2, 8, 4, 4)))
        edges.extend(Edge(source, name) for source in sources if source)
        if is_site:
            chosen = choice() if "conv2" in name else choice("pps", "backward") if "conv1" in name else None
            decisions.append(decided(site(name, 8, 8, side=4, kernel=3), chosen))
        return name

    def layer(path: str, op: str, *sources: str, is_site: bool = False) -> str:
        return put(path, op, path.partition(":")[0], *sources, is_site=is_site)

    last = layer("stem", "Conv2d", is_site=True)
    last = layer("act", "ReLU", layer("bn", "BatchNorm2d", last))
    for n in range(blocks):
        path = f"blocks.{n}"
        x = layer(f"{path}.conv1", "Conv2d", last, is_site=True)
        x = layer(f"{path}.act", "ReLU", x)
        x = layer(f"{path}.conv2", "Conv2d", x, is_site=True)
        last = layer(f"{path}.act:1", "ReLU", put(f"{path}.add:1", "add", path, x, last))
    layer("head", "Linear", put("mean:1", "mean", "", last), is_site=True)
    total = sum(d.site.flops for d in decisions)
    return Captured(total, operators=tuple(operators), edges=tuple(edges)), Plan(
        "m.py:Net", "f", tuple(decisions)
    )


def scene_of(captured: Captured, plan: Plan, tall: float = 1500.0) -> Scene:
    told = facts(plan, captured)
    return scene(outline(captured.operators, captured.edges, told["sites"]), captured.total_flops, tall=tall)


def test_chains_fold_and_what_meets_stays() -> None:
    captured, plan = residual()
    drawn = outline(captured.operators, captured.edges, facts(plan, captured)["sites"])
    assert list(drawn.nodes) == [
        "stem",
        *itertools.chain(
            *((f"blocks.{n}.conv1", f"blocks.{n}.conv2", f"blocks.{n}.add:1") for n in range(3))
        ),
        "head",
    ]
    assert drawn.nodes["stem"].tail == ["BatchNorm2d", "ReLU"]
    assert drawn.nodes["blocks.0.conv1"].tail == ["ReLU"]
    assert drawn.nodes["blocks.0.add:1"].tail == ["ReLU"]
    assert drawn.nodes["head"].head == ["mean"]
    assert drawn.children["blocks.1"] == ("blocks.1.conv1", "blocks.1.conv2", "blocks.1.add:1")
    assert drawn.title("blocks.1.conv1") == "conv1"
    assert ("stem", "blocks.0.add:1") in drawn.edges


def test_every_path_of_the_graph_is_in_the_outline() -> None:
    """Folding keeps which site reaches which."""
    import networkx as nx

    captured, plan = residual()
    drawn = outline(captured.operators, captured.edges, facts(plan, captured)["sites"])
    whole, small = nx.DiGraph(), nx.DiGraph(drawn.edges)
    whole.add_edges_from((edge.source, edge.target) for edge in captured.edges)
    ids = [d.site.id for d in plan.decisions]
    for one, other in itertools.permutations(ids, 2):
        assert nx.has_path(whole, one, other) == nx.has_path(small, one, other), (one, other)


def test_what_several_sites_read_belongs_to_none_of_them() -> None:
    operators = [Operator(name, "Linear", name, name, None) for name in ("in", "q", "k", "out")]
    operators[1:1] = [Operator("norm", "LayerNorm", "norm", None, None)]
    operators[4:4] = [Operator("add:1", "add", "", None, None)]
    edges = [
        Edge("in", "norm"), Edge("norm", "q"), Edge("norm", "k"), Edge("q", "add:1"), Edge("k", "add:1"),
        Edge("in", "add:1"), Edge("add:1", "out"),
    ]  # fmt: skip
    plan = Plan("m", "f", tuple(decided(site(name, 4, 4), None) for name in ("in", "q", "k", "out")))
    drawn = outline(operators, edges, facts(plan)["sites"])
    assert set(drawn.edges) == {(edge.source, edge.target) for edge in edges}


def test_a_module_without_sites_is_one_node_and_a_single_child_needs_no_frame() -> None:
    operators = [
        Operator("fc", "Linear", "fc", "fc", None),
        Operator("norm.pow:1", "pow", "norm", None, None),
        Operator("norm.mean:1", "mean", "norm", None, None),
        Operator("norm.mul:1", "mul", "norm", None, None),
        Operator("deep.inner.fc", "Linear", "deep.inner.fc", "deep.inner.fc", None),
    ]
    edges = [
        Edge("fc", "norm.pow:1"), Edge("norm.pow:1", "norm.mean:1"), Edge("norm.mean:1", "norm.mul:1"),
        Edge("fc", "norm.mul:1"), Edge("norm.mul:1", "deep.inner.fc"),
    ]  # fmt: skip
    plan = Plan("m", "f", (decided(site("fc", 4, 4), None), decided(site("deep.inner.fc", 4, 4), None)))
    drawn = outline(operators, edges, facts(plan)["sites"])
    assert list(drawn.nodes) == ["fc", "deep.inner.fc"]
    assert drawn.nodes["fc"].tail == ["norm"]
    assert list(drawn.children) == [""]
    assert drawn.title("deep.inner.fc") == "deep.inner.fc"


def test_a_module_that_data_leave_and_enter_again_has_no_frame() -> None:
    names = ["a.first", "outside", "a.second"]
    operators = [Operator(name, "Linear", name, name, None) for name in names]
    edges = [Edge("a.first", "outside"), Edge("outside", "a.second")]
    plan = Plan("m", "f", tuple(decided(site(name, 4, 4), None) for name in names))
    drawn = outline(operators, edges, facts(plan)["sites"])
    assert list(drawn.children) == [""]
    assert set(drawn.nodes) == set(names)


def overlaps(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    (x, y, w, h), (u, v, s, t) = one, other
    return x < u + s - 0.01 and u < x + w - 0.01 and y < v + t - 0.01 and v < y + h - 0.01


@pytest.mark.parametrize("tall", [300.0, 1500.0])
def test_nothing_overlaps_and_everything_is_inside(tall: float) -> None:
    made = scene_of(*residual(5), tall=tall)
    boxes = [(box.x, box.y, box.width, box.height) for box in made.boxes]
    assert not any(overlaps(one, other) for one, other in itertools.combinations(boxes, 2))
    for x, y, width, height in boxes:
        assert 0 <= x <= x + width <= made.width
        assert 0 <= y <= y + height <= made.height
    for _, points in made.lines:
        assert all(-0.01 <= x <= made.width + 0.01 and -0.01 <= y <= made.height + 0.01 for x, y in points)
    assert (made.height < 900) == (tall < 1000), "a tall drawing is folded into columns"


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_are_laid_out_without_overlaps(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(2, 30)
    boxes = [Item(str(n), chance.randint(20, 120), chance.randint(20, 60)) for n in range(count)]
    flows: list[tuple[str | None, str | None, str]] = [
        (str(a), str(b), str(a))
        for a, b in itertools.combinations(range(count), 2)
        if chance.random() < 3 / count
    ]
    flows += [(None, str(chance.randrange(count)), "in"), (str(count - 1), None, str(count - 1))]
    level = lay_out(boxes, flows, tall=chance.choice([200.0, 5000.0]))
    places = [(item.x, item.y, item.width, item.height) for item in level.items]
    assert not any(overlaps(one, other) for one, other in itertools.combinations(places, 2))
    where = {item.name: item for item in level.items}
    tops = {(round(item.above(line), 3), round(item.y, 3)) for item in where.values() for line in ["x"]}
    ends = {(round(points[-1][0], 3), round(points[-1][1], 3)) for _, points in level.lines}
    for _, other, _ in flows:
        if other is not None:
            item = where[other]
            assert (round(item.above("x"), 3), round(item.y, 3)) in ends & tops, "every line arrives"


def test_svg_is_well_formed_and_tells_what_was_done(tmp_path: Path) -> None:
    captured, plan = residual()
    path = draw(facts(plan, captured), captured, tmp_path / "net.svg")
    root = ElementTree.parse(path).getroot()
    nodes = {g.get("id"): g for g in root.iter(f"{SVG}g") if g.get("class") == "node"}
    assert len(nodes) == 11
    colours = {name: node.find(f"{SVG}rect").get("stroke") for name, node in nodes.items()}  # type: ignore[union-attr]
    assert colours["blocks.0.conv1"] != colours["blocks.0.conv2"] != colours["stem"]
    assert colours["blocks.0.conv1"] == colours["blocks.1.conv1"]
    text = " ".join(root.itertext())
    for part in ("m.py:Net", "conv1", "conv2d 8→8 3×3", "topk · forward · 0.5", "left exact", "net.py:12"):
        assert part in text, part
    dashed = nodes["stem"].find(f"{SVG}rect")
    assert dashed is not None
    assert dashed.get("stroke-dasharray")


def test_the_fill_grows_with_the_share() -> None:
    greens = [int(fill(share, 100)[3:5], 16) for share in range(0, 101, 5)]
    assert greens == sorted(greens, reverse=True)
    assert len(set(greens)) > 15


def test_html_holds_everything_itself(tmp_path: Path) -> None:
    captured, plan = residual()
    text = draw(facts(plan, captured), captured, tmp_path / "net.html").read_text()
    assert not re.search(r"(src|href)\s*=|@import|fetch\(", text)
    assert "{{" not in text
    assert '<g class="node" id="blocks.0.conv1">' in text


def test_dot_has_clusters_and_edges(tmp_path: Path) -> None:
    captured, plan = residual()
    text = draw(facts(plan, captured), captured, tmp_path / "net.dot").read_text()
    assert text.count("{") == text.count("}")
    assert 'subgraph "cluster blocks.0"' in text
    assert '"blocks.0.conv1" -> "blocks.0.conv2"' in text


def test_refusals(tmp_path: Path) -> None:
    captured, plan = residual()
    told = facts(plan, captured)
    with pytest.raises(fxapprox.FxApproxError, match=r"did you mean '\.svg'"):
        draw(told, captured, tmp_path / "net.svgg")
    with pytest.raises(fxapprox.FxApproxError, match="no folder"):
        draw(told, captured, tmp_path / "none" / "net.svg")
    with pytest.raises(fxapprox.FxApproxError, match="no graph to draw"):
        draw(told, Captured(1), tmp_path / "net.svg")
    mine = tmp_path / "mine.svg"
    mine.write_text("<svg/>")
    with pytest.raises(fxapprox.FxApproxError, match="was not drawn by fxapprox"):
        draw(told, captured, mine)
    assert mine.read_text() == "<svg/>"
    draw(told, captured, mine, force=True)
    draw(told, captured, mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.svg"]
