"""Run state and attachment: a resumed run is the uninterrupted one, to the bit."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxapprox
from fxapprox import FxApproxError
from fxapprox.errors import RequestError
from fxapprox.passes.layers import sampled

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
Y = torch.randint(4, (8,), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A layer, a call of a function and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(16, 4)
        self.mix = nn.Parameter(torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.dropout(self.first(x).relu() @ self.mix, 0.3, self.training))


KEYS: dict[str, dict[str, Any]] = {
    "forward": {"policy": "pps"},
    "backward": {"policy": "uniform", "scope": "backward"},
    "memory": {"policy": "weighted", "scope": "grad-weight", "memory": {"decay": 0.9}},
}


def rewritten(**keys: Any) -> nn.Module:
    torch.manual_seed(3)
    return fxapprox.rewrite(Net(), (X,), **{"policy": "pps", "keep": 0.5, **keys})


def optimizer_of(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Batches of 8 and 5 in turn, at a rate that falls."""
    model.train()
    attached = fxapprox.attach(model, optimizer)
    for step in range(steps):
        rows = 8 if step % 2 == 0 else 5
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[:rows]), Y[:rows]).backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.9
    attached.remove()


def saved(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "run": fxapprox.run_state(model),
        "rng": torch.get_rng_state(),
    }


def loaded(model: nn.Module, bag: dict[str, Any]) -> torch.optim.SGD:
    optimizer = optimizer_of(model)
    model.load_state_dict(bag["model"])
    optimizer.load_state_dict(bag["optimizer"])
    fxapprox.load_run_state(model, bag["run"])
    torch.set_rng_state(bag["rng"])
    return optimizer


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def halves(model: nn.Module, path: Path) -> nn.Module:
    """Six steps; what stands after three is saved."""
    torch.manual_seed(7)
    optimizer = optimizer_of(model)
    train(model, optimizer, 3)
    torch.save(saved(model, optimizer), path)
    train(model, optimizer, 3)
    return model


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("seed_between", [None, 7, 99])
def test_a_resumed_run_is_the_uninterrupted_one(keys: str, seed_between: int | None, tmp_path: Path) -> None:
    whole = halves(rewritten(**KEYS[keys]), tmp_path / "run.pt")
    again = rewritten(**KEYS[keys])
    if seed_between is not None:  # what the resuming script seeded with does not count
        torch.manual_seed(seed_between)
    optimizer = loaded(again, torch.load(tmp_path / "run.pt", weights_only=True))
    train(again, optimizer, 3)
    assert_equal(again, whole)


PROGRAM = """
import importlib, sys, torch
sys.path[:0] = sys.argv[1:3]
from test_run import KEYS, loaded, optimizer_of, rewritten, train
for name, keys in KEYS.items():
    emitted = importlib.import_module("net_" + name).build_model()
    for how, model in (("rewritten", rewritten(**keys)), ("emitted", emitted)):
        train(model, optimizer_of(model), 1)  # draws and rows that count for nothing
        train(model, loaded(model, torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=True)), 3)
        torch.save(model.state_dict(), f"{sys.argv[1]}/{name}_{how}.pt")
"""


def test_a_run_resumes_in_another_process_and_from_an_emitted_file(tmp_path: Path) -> None:
    whole = {}
    for name, keys in KEYS.items():
        model = rewritten(**keys)
        fxapprox.emit(model, tmp_path / f"net_{name}.py")
        whole[name] = halves(model, tmp_path / f"{name}.pt").state_dict()
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(arguments, check=True)
    for name, wanted in whole.items():
        for how in ("rewritten", "emitted"):
            resumed = torch.load(tmp_path / f"{name}_{how}.pt")
            for key, value in wanted.items():
                assert torch.equal(resumed[key], value), (name, how, key)


def test_the_seed_of_the_run_goes_on_without_the_generator() -> None:
    """Only the sites' draws are taken up where torch's generator is not restored."""
    layer = sampled(nn.Linear(12, 16), site="layer", policy="uniform")
    torch.manual_seed(7)
    layer(X)
    state = fxapprox.run_state(layer)
    wanted = layer(X), layer(X)
    torch.manual_seed(99)
    fxapprox.load_run_state(layer, state)
    assert torch.equal(layer(X), wanted[0])
    torch.manual_seed(7)  # by name: the draws start over
    assert not torch.equal(layer(X), wanted[1])
    torch.manual_seed(7)
    layer(X)
    assert torch.equal(layer(X), wanted[0])


def test_a_state_taken_after_seeding_starts_from_the_seed() -> None:
    layer = sampled(nn.Linear(12, 16), site="layer", policy="uniform")
    torch.manual_seed(7)
    first = layer(X)
    torch.manual_seed(7)
    state = fxapprox.run_state(layer)
    assert state == {"layer": {"draws": {"seed": 7, "number": 0}}}
    torch.manual_seed(8)
    fxapprox.load_run_state(layer, state)
    assert torch.equal(layer(X), first)


def test_a_state_is_a_copy() -> None:
    model = rewritten()
    state = fxapprox.run_state(model)
    before = pickle.dumps(state)
    train(model, optimizer_of(model), 1)
    assert pickle.dumps(state) == before


def test_states_of_other_models_are_refused_whole() -> None:
    model = rewritten()
    state = fxapprox.run_state(model)
    before = pickle.dumps(state)
    with pytest.raises(RequestError, match="last: in the model, not in the state"):
        fxapprox.load_run_state(model, {site: own for site, own in state.items() if site != "last"})
    with pytest.raises(RequestError, match="other: in the state, not in the model"):
        fxapprox.load_run_state(model, {**state, "other": {}})
    with pytest.raises(RequestError, match="first: draws in the model, not in the state"):
        fxapprox.load_run_state(model, {**state, "first": {}})
    with pytest.raises(RequestError, match="first: draws in the state, not in the model"):
        fxapprox.load_run_state(rewritten(policy="topk"), state)
    assert pickle.dumps(fxapprox.run_state(model)) == before


def test_what_does_not_sample_has_no_run_state() -> None:
    for use in (fxapprox.run_state, lambda m: fxapprox.attach(m, optimizer_of(m))):
        with pytest.raises(FxApproxError, match="Net does not sample"):
            use(Net())


def test_two_models_in_one() -> None:
    both = nn.ModuleList([rewritten(), rewritten()])
    with pytest.raises(RequestError, match="two sites of this model are called 'first'"):
        fxapprox.run_state(both)


def test_wrappers_are_looked_through() -> None:
    model = rewritten()
    assert fxapprox.run_state(nn.DataParallel(model)) == fxapprox.run_state(model)


def test_calls_in_containers_have_a_state() -> None:
    class Steps(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) @ self[0].weight

    fast = fxapprox.rewrite(Steps(nn.Linear(12, 16)), (X,), policy="pps")
    assert set(fxapprox.run_state(fast)) == {"0", "matmul_1"}


def rates(model: nn.Module) -> list[float | None]:
    attachments = model.first._fxapprox.parts[""].attachments  # type: ignore[union-attr]
    paces = [held.pace(model.first.weight) for held in attachments]  # type: ignore[union-attr]
    return [pace and pace.rate for pace in paces]


def test_an_attached_model_reads_the_rate_of_the_weights_group() -> None:
    model = rewritten()
    optimizer = torch.optim.SGD([{"params": model.last.parameters(), "lr": 1.0}], lr=0.1)
    handle = fxapprox.attach(model, optimizer)
    assert rates(model) == [None]
    optimizer.add_param_group({"params": [*model.first.parameters(), model.mix]})
    assert rates(model) == [0.1]
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, 1)
    schedule.step()
    assert rates(model) == [0.05]
    optimizer.load_state_dict(optimizer.state_dict())  # makes new groups
    optimizer.param_groups[1]["lr"] = torch.tensor(0.25)
    assert rates(model) == [0.25]
    handle.remove()
    handle.remove()
    assert rates(model) == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_attached_to_nothing(copied: Any) -> None:
    model = rewritten()
    fxapprox.attach(model, optimizer_of(model))
    assert rates(copied(model)) == []
    assert rates(model) == [0.1]


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    with pytest.raises(RequestError, match="holds no parameter of this model"):
        fxapprox.attach(rewritten(), optimizer_of(Net()))
    with pytest.raises(RequestError, match="no optimizer"):
        fxapprox.attach(rewritten(), "SGD")  # type: ignore[arg-type]
