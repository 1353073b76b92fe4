"""alsh: its hash, its tables and their life, what it finds, what it costs."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from by_hand import site
from hypothesis import given, settings
from hypothesis import strategies as st
from node_work import work_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fxapprox
from fxapprox.errors import RequestError
from fxapprox.passes.layers import sampled
from fxapprox.passes.parts import Part
from fxapprox.policies.alsh import Alsh
from fxapprox.sampling.hashing import Tables, collision_probability, signatures, transformed_rows


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(out: int = 200, inputs: int = 64, **options: Any) -> nn.Linear:
    torch.manual_seed(0)
    return sampled(nn.Linear(inputs, out), site="layer", policy="alsh", **options)


def part(module: nn.Module) -> Part:
    return module._fxapprox.parts[""]  # type: ignore[union-attr,index,return-value]


# ---- the hash


def test_bits_collide_as_often_as_the_closed_form_says() -> None:
    weight = torch.randn(9, 6, generator=numbers(), dtype=torch.float64)
    x = torch.randn(4, 6, generator=numbers(1), dtype=torch.float64)
    planes = torch.randn(6 + 3, 40_000, generator=numbers(2), dtype=torch.float64)
    rows = signatures(transformed_rows(weight, 3, 0.83), planes, 1)
    same = (rows.unsqueeze(1) == signatures(x, planes[:6], 1).unsqueeze(2)).double().mean(0)
    p = collision_probability(weight, x, 3, 0.83)
    z = (same - p) / (p * (1 - p) / 40_000).sqrt()
    assert z.abs().max() < 5.5  # of 36 binomials: a false alarm has probability 36 · 4e-8


def test_the_transform_turns_inner_products_into_angles() -> None:
    weight, x = torch.randn(50, 8, generator=numbers()), torch.randn(1, 8, generator=numbers(1))
    rows = transformed_rows(weight, 3, 0.83)
    scaled = weight * (0.83 / weight.norm(dim=1).max())
    lengths = 3 / 4 + scaled.norm(dim=1) ** 16
    torch.testing.assert_close(rows.square().sum(1), lengths)
    p = collision_probability(weight, x, 3, 0.83)[0]
    cosine = (scaled @ x[0] / x.norm() / lengths.sqrt()).double()
    torch.testing.assert_close(p, 1 - cosine.arccos() / math.pi, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 7), st.integers(0, 5), st.integers(0, 99))
def test_tables_find_what_comparing_all_signatures_finds(
    K: int, L: int, nodes: int, rows: int, seed: int
) -> None:
    weight, x = (
        torch.randn(nodes, 3, generator=numbers(seed)),
        torch.randn(rows, 3, generator=numbers(seed + 1)),
    )
    tables = Tables.build(weight, K, L, 2, 0.75, numbers(seed))
    queries = tables.signatures_of(x)
    wanted = (queries.unsqueeze(2) == tables.codes.unsqueeze(1)).float().sum(0)
    assert torch.equal(tables.votes(queries), wanted)
    assert torch.equal(tables.votes_of_all(queries), wanted.sum(0))
    assert int(tables.codes.max()) < 2**K


# ---- what it finds, what it costs


def active(module: nn.Linear, x: Tensor) -> Tensor:
    return module(x).detach().ne(0)


@pytest.mark.parametrize("how", ["example", "union"])
def test_it_finds_large_inner_products_more_often_than_chance(how: str) -> None:
    module, rows = layer(out=1000, active=how, K=4, L=10), 1 if how == "union" else 200
    nn.init.normal_(module.weight)
    nn.init.zeros_(module.bias)
    hits, draws = 0.0, 200 // rows
    for draw in range(draws):
        x = torch.randn(rows, 64, generator=numbers(draw))
        best = (x @ module.weight.t()).topk(10, dim=1).indices
        hits += float(active(module, x).gather(1, best).sum())
    # chance: each of 2,000 is among the active 5% with p = 0.05; 8 standard deviations above it
    assert hits > 2000 * 0.05 + 8 * math.sqrt(2000 * 0.05 * 0.95)
    assert int(active(module, x).sum(1).max()) == 50


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("how", ["example", "union"])
def test_work_is_in_proportion_to_the_active_set(how: str, share: float) -> None:
    module, x = layer(out=200, max_active=share, active=how), torch.randn(16, 64)
    module(x)  # builds the tables
    signs, k = 16 * 64 * 30, round(200 * share)
    assert work_of(module, x) == [signs + 16 * 64 * k, 2 * 16 * 64 * k]


def test_signatures_of_the_rows_are_one_product() -> None:
    module, x = layer(out=200), torch.randn(16, 64)
    rows = 200 * (64 + 3) * 30
    assert work_of(module, x)[0] == rows + 16 * 64 * 30 + 16 * 64 * 10


def test_unchosen_nodes_output_nothing_and_get_no_gradient() -> None:
    module, x = layer(), torch.randn(1, 64)
    y = module(x)
    y.sum().backward()
    chosen = y[0].ne(0)
    assert int(chosen.sum()) == 10
    assert torch.equal(module.weight.grad.abs().sum(1).ne(0), chosen)
    assert torch.equal(module.bias.grad.ne(0), chosen)


def test_one_example_is_the_same_in_both_forms() -> None:
    x = torch.randn(1, 64)
    found = []
    for how in ("example", "union"):
        module = layer(active=how)
        torch.manual_seed(1)
        found.append(module(x))
    torch.testing.assert_close(*found)


# ---- the tables' life


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that tables are built from."""
    seen: list[Tensor] = []
    build = Tables.build.__func__  # type: ignore[attr-defined]

    def noted(cls: type[Tables], weight: Tensor, *args: Any) -> Tables:
        seen.append(weight.detach().clone())
        return build(cls, weight, *args)

    monkeypatch.setattr(Tables, "build", classmethod(noted))
    return seen


def test_tables_are_rebuilt_by_examples_seen(builds: list[Tensor]) -> None:
    module = layer(out=20, early_rebuild=10, early=40, rebuild=30)
    at = []
    for seen in range(0, 160, 5):
        before = len(builds)
        module(torch.randn(5, 64))
        at += [seen] * (len(builds) - before)
    assert at == [0, 10, 20, 30, 60, 90, 120, 150]


def test_what_changes_the_weight_makes_tables_anew(builds: list[Tensor]) -> None:
    module, x = layer(out=20), torch.randn(3, 64)
    assert list(module.state_dict()) == ["weight", "bias"]
    module(x)
    module(x)
    assert len(builds) == 1
    state = {name: value + 1 for name, value in module.state_dict().items()}
    model = nn.Sequential(module)
    model.load_state_dict({f"0.{name}": value for name, value in state.items()})
    model(x)
    assert torch.equal(builds[1], state["weight"])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(x)
    assert len(builds) == 4
    model.double()
    model(x.double())
    assert builds[-1].dtype == torch.float64
    assert len(builds) == 5


def test_a_function_call_hears_of_a_loaded_weight(builds: list[Tensor]) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 40))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x @ self.weight)

    model, x = Own(), torch.randn(3, 16)
    fast = fxapprox.rewrite(model, (x,), policy="alsh")
    builds.clear()
    fast(x)
    fast(x)
    fast.load_state_dict(fast.state_dict())
    fast(x).sum().backward()
    assert len(builds) == 2
    assert int(fast.weight.grad.abs().sum(0).ne(0).sum()) <= 6


def test_a_repeated_forward_finds_the_tables_it_used() -> None:
    module = layer(out=60, early_rebuild=8, max_active=0.2)
    x = torch.randn(8, 64)
    twin = copy.deepcopy(module)

    def thrice(one: nn.Module, keep: bool) -> list[Tensor]:
        torch.manual_seed(2)
        one.zero_grad()
        calls = [
            checkpoint(one, x * (i + 1), use_reentrant=False) if keep else one(x * (i + 1)) for i in range(3)
        ]
        sum(call.square().sum() for call in calls).backward()  # type: ignore[union-attr]
        return [p.grad.clone() for p in one.parameters()]  # type: ignore[union-attr]

    for _ in range(2):  # every call rebuilds, so the recomputed ones come when tables are newer
        for one, other in zip(thrice(module, True), thrice(twin, False), strict=True):
            torch.testing.assert_close(one, other)
    assert part(module).kept.seen == 48  # repeats are not counted


@pytest.mark.parametrize("weights_first", [True, False])
def test_a_resumed_run_is_the_run(weights_first: bool) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 60), nn.ReLU(), nn.Linear(60, 3))
        rules = [fxapprox.Rule(path="0", policy="alsh", max_active=0.2, early_rebuild=16)]
        fast = fxapprox.rewrite(model, (torch.randn(4, 12),), rules=rules)
        return fast, torch.optim.SGD(fast.parameters(), 0.1)

    def train(fast: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            fast(torch.randn(5, 12, generator=numbers(step))).square().sum().backward()
            optimizer.step()

    whole, optimizer = fresh()
    torch.manual_seed(4)
    train(whole, optimizer, range(5))
    weights, run = copy.deepcopy(whole.state_dict()), fxapprox.run_state(whole)
    train(whole, optimizer, range(5, 12))
    resumed, optimizer = fresh()
    if weights_first:
        resumed.load_state_dict(weights)
    fxapprox.load_run_state(resumed, run)
    if not weights_first:
        resumed.load_state_dict(weights)
    train(resumed, optimizer, range(5, 12))
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


# ---- what is refused


def test_a_convolution_is_refused_with_the_papers_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 40))
    plan = fxapprox.plan(model, (torch.randn(2, 3, 6, 6),), policy="alsh")
    assert [d.choice is None for d in plan.decisions] == [True, False]
    reason = plan.decisions[0].reason
    assert "serves linear layers only, and this is Conv2d" in reason
    assert "few inputs" in reason
    assert "section 7" in reason


@pytest.mark.parametrize("shape", [(4, 3, 5), (3,)])
def test_other_weights_than_matrices_are_refused(shape: tuple[int, ...]) -> None:
    refused = Alsh().refuses(site(kind="bilinear", weight_shape=shape))
    assert refused is not None
    assert "×".join(map(str, shape)) in refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"K": 0}, "K = 0"),
        ({"K": 17}, "1 to 16"),
        ({"U": 1.0}, "0 < U < 1"),
        ({"max_active": 0.0}, "max_active"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Alsh(**options)
    with pytest.raises(RequestError, match=says):
        fxapprox.Rule(policy="alsh", **options)


def test_flops_are_the_active_share_and_the_hashing() -> None:
    model = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 10))
    rules = [fxapprox.Rule(path="0", policy="alsh")]
    one = fxapprox.summary(fxapprox.plan(model, (torch.randn(32, 100),), rules=rules)).facts["sites"][0]
    exact = 2 * 32 * 100 * 1000
    assert one["products"]["forward"]["flops_after"] == round(exact * (0.05 + 30 / 1000 + 30 / 1000))
    assert one["products"]["grad_weight"]["flops_after"] == round(exact * 0.05)
    assert one["kept_bytes_after"] == one["kept_bytes"]
