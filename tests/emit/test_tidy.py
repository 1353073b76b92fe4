"""Tidied forwards compute what they computed, in the same order."""

from __future__ import annotations

import ast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxapprox.emit.tidy import tidied
from fxapprox.emit.wrap import wrapped

IMPORTS = {"F": ("torch.nn.functional", ""), "torch": ("torch", "")}


def lines(source: str, module: nn.Module | None = None) -> list[str]:
    return tidied(source, module or nn.Module(), IMPORTS).split("\n")[1:]


def forward(*body: str) -> str:
    return "\n".join(["def forward(self, x, y):", *(f"    {line}" for line in body)])


def test_a_chain_of_layers_becomes_nested_calls() -> None:
    found = lines(forward("a = self.conv(x)", "a = self.bn(a)", "a = torch.relu(a)", "return a"))
    assert found == ["    return torch.relu(self.bn(self.conv(x)))"]


def test_nests_are_three_calls_deep_at_most() -> None:
    found = lines(forward("a = f(x)", "a = g(a)", "a = h(a)", "a = i(a)", "a = j(a)", "return a"))
    assert found == ["    a = h(g(f(x)))", "    return j(i(a))"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (("a = f(x)", "b = g(y) + a", "return b"), "g would run first"),
        (("a = f(x)", "b = g(a, a)", "return b"), "used twice"),
        (("a = f(x)", "b = g(a)", "return h(b, a)"), "used later"),
        (("a = x + y", "b = a.sum()", "return b"), "needs brackets"),
        (("a = f(x)", "y[0] = a", "return y"), "stored in place"),
        (("with torch.no_grad():", "    a = f(x)", "b = g(a)", "return h(b, b)"), "of another block"),
    ],
)
def test_what_stays_apart(body: tuple[str, ...], why: str) -> None:
    source = forward(*body)
    first = next(line for line in source.split("\n") if "a = " in line)
    assert first in tidied(source, nn.Module(), IMPORTS).split("\n"), why


def test_layers_of_a_list_become_a_loop() -> None:
    module = nn.Module()
    module.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    body = ["h = self.embed(x)", *(f"{'h' if i else 'z'} = self.layers[{i}](h, y)" for i in range(4))]
    same = ["z = self.embed(x)", *(f"z = self.layers[{i}](z, y)" for i in range(4)), "return self.norm(z)"]
    assert lines(forward(*same), module) == [
        "    z = self.embed(x)",
        "    for layer in self.layers:",
        "        z = layer(z, y)",
        "    return self.norm(z)",
    ]
    other = ["h = self.embed(x)", "z = self.layers[0](h, y)"]
    other += [f"z = self.layers[{i}](z, y)" for i in (1, 2, 3)] + ["return self.norm(z)"]
    assert lines(forward(*other), module)[:3] == [
        "    z = self.embed(x)",
        "    for layer in self.layers:",
        "        z = layer(z, y)",
    ]
    assert "self.layers[0](h, y)" in tidied(
        forward(*body, "return h"), module, IMPORTS
    )  # carries nothing over


def test_a_part_of_a_list_and_two_lists() -> None:
    module = nn.Module()
    module.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    module.norms = nn.ModuleList(nn.LayerNorm(2) for _ in range(4))
    body = [f"x = self.norms[{i}](self.layers[{i}](x))" for i in range(1, 4)]
    assert lines(forward(*body, "return x"), module)[0] == (
        "    for norm, layer in zip(self.norms[1:4], self.layers[1:4], strict=True):"
    )


def test_a_first_round_that_reads_its_input_twice_is_no_round() -> None:
    module = nn.Module()
    module.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))
    body = ["z = self.layers[0](x)", "z = z + x"]
    body += [line for i in (1, 2, 3) for line in (f"z = self.layers[{i}](z)", "z = z + z")]
    text = tidied(forward(*body, "return z"), module, IMPORTS)
    assert "self.layers[0](x) + x" in text
    assert "for layer in self.layers[1:4]:" in text


def test_arguments_that_say_the_default_are_left_out() -> None:
    body = "return F.dropout(F.relu(x, inplace=False), p=0.1, training=True, inplace=False)"
    assert lines(forward(body)) == ["    return F.dropout(F.relu(x), p=0.1)"]
    assert lines(forward("return F.dropout(x, training=self.training)")) == [
        "    return F.dropout(x, training=self.training)"
    ]


@pytest.mark.parametrize("outputs", [["h", "h", "h", "h"], ["a", "b", "a", "c"], ["x", "h", "x", "y"]])
def test_rounds_may_differ_in_names(outputs: list[str]) -> None:
    module = Layers(4)
    inputs = ["x", *outputs]
    body = [f"{outputs[i]} = self.layers[{i}]({inputs[i]}, w)" for i in range(4)]
    source = "\n".join(
        ["def forward(self, x, w):", *(f"    {line}" for line in body), f"    return {outputs[-1]} * 2"]
    )
    text = tidied(source, module, IMPORTS)
    assert "in self.layers:" in text
    assert torch.equal(run(text, module), run(source, module))


@pytest.mark.parametrize(
    "body",
    [
        ["a = self.layers[0](x, w)", "b = self.layers[1](a, w)", "c = self.layers[2](b, w)", "return b + c"],
        ["a = self.layers[0](x, w)", "b = self.layers[1](x, a)", "c = self.layers[2](a, b)", "return c"],
        ["a = self.layers[0](x, w)", "b = self.layers[1](a, x)", "c = self.layers[2](b, a)", "return c"],
        ["a = self.layers[0](x, w)", "w = self.layers[1](a, w)", "x = self.layers[2](w, x)", "return x"],
        ["a = self.layers[0](x, w)", "b = self.layers[1](a, w)", "w = self.layers[2](b, w)", "return w"],
        [
            *("b = self.layers[0](w, w)", "a = x - b", "b = self.layers[1](w, w)", "a = a - b"),
            *("b = self.layers[2](w, w)", "b = a - b", "return b"),
        ],
    ],
)
def test_what_is_no_loop_stays_none(body: list[str]) -> None:
    module = Layers(3)
    source = "\n".join(["def forward(self, x, w):", *(f"    {line}" for line in body)])
    assert torch.equal(run(tidied(source, module, IMPORTS), module), run(source, module))


class Layers(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Bilinear(3, 3, 3).requires_grad_(False) for _ in range(count))


def run(source: str, module: nn.Module) -> torch.Tensor:
    space = {"torch": torch, "F": F}
    exec(source, space)
    found: torch.Tensor = space["forward"](module, torch.arange(3.0), torch.ones(3))
    return found


STATEMENTS = st.lists(
    st.tuples(
        st.sampled_from("abcx"),
        st.sampled_from([
            "tick({0})", "{0}.sin()", "{0} + {1}", "torch.maximum({0}, {1})", "tick({0}) * {1}",
            "{1} - tick({0})",
            "torch.where({0} > {1}, tick({1}), {0})", "{0}[None].squeeze(0)", "F.relu({0}, inplace=False)",
        ]),
        st.sampled_from("abcx"),
        st.sampled_from("abcx"),
    ),
    min_size=1,
    max_size=12,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(STATEMENTS, st.sampled_from("abcx"))
def test_random_programs_keep_their_results_and_their_order(
    statements: list[tuple[str, str, str, str]], result: str
) -> None:
    body = [f"{target} = {shape.format(one, other)}" for target, shape, one, other in statements]
    source = "\n".join(
        ["def forward(self, a, b, c, x):", *(f"    {line}" for line in body), f"    return {result}"]
    )

    def outcome(text: str) -> tuple[torch.Tensor, list[float]]:
        seen: list[float] = []

        def tick(value: torch.Tensor) -> torch.Tensor:
            seen.append(float(value.sum()))
            return value * 1.1

        space = {"torch": torch, "F": F, "tick": tick}
        exec(text, space)
        inputs = (torch.arange(3.0) * scale for scale in (1, -2, 0.5, 3))
        found: torch.Tensor = space["forward"](None, *inputs)
        return found, seen

    value, order = outcome(source)
    tidy_value, tidy_order = outcome(tidied(source, nn.Module(), IMPORTS))
    assert torch.equal(value, tidy_value)
    assert order == tidy_order


@pytest.mark.parametrize(
    "line",
    [
        "    self.stage = nn.Sequential(Block(64, 128, stride=2), *[Block(128, 128) for _ in range(5)], "
        "nn.ReLU(inplace=True))",
        "    pair = (self.first_projection_of_the_input(x, key='a, (b', mask=None), "
        "self.second_projection_of_it(x, y)[0], 3)",
        "    only = (function_with_a_long_name(first_argument_with_a_name, second_argument_with_a_name, "
        "third_argument_too),)",
        "    model.encoder.blocks[10].attention.shared_projection = "
        "model.encoder.blocks[0].attention.the_shared_projection_itself",
        "    layers = nn.ModuleList([SomeBlockWithALongName(in_channels, out_channels, kernel_size=3) "
        "for _ in range(12)])",
    ],
)
def test_broken_lines_mean_the_same(line: str) -> None:
    text = wrapped(line)
    assert max(map(len, text.split("\n"))) <= 110
    assert ast.dump(ast.parse(text.strip())) == ast.dump(ast.parse(line.strip()))


ROUNDS = st.lists(st.tuples(*[st.sampled_from("xwabc")] * 6), min_size=3, max_size=5)


@settings(max_examples=300, deadline=None)
@given(ROUNDS, st.sampled_from("xwabc"))
def test_random_rounds_keep_their_result(rounds: list[tuple[str, ...]], result: str) -> None:
    module = Layers(len(rounds))
    body = ["a = x + 1", "b = x + 2", "c = x + 3"]
    for index, (out, one, other, last, left, right) in enumerate(rounds):
        body += [f"{out} = self.layers[{index}]({one}, {other})", f"{last} = {left} - {right}"]
    body.append(f"return {result} + x")
    source = "\n".join(["def forward(self, x, w):", *(f"    {line}" for line in body)])
    assert torch.equal(run(tidied(source, module, IMPORTS), module), run(source, module))
