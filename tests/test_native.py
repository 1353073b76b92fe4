"""The fused kernels: built here, and equal to what runs without them."""

from __future__ import annotations

import copy
import fcntl
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fxapprox import native, system
from fxapprox.errors import RequestError
from fxapprox.kinds import kinds
from fxapprox.native import build
from fxapprox.passes.layers import sampled
from fxapprox.policies import policies
from fxapprox.sampling import draws
from fxapprox.testing import check_kind, check_policy

PAIR_POLICIES = ["topk", "pps", "bernoulli", "crs", "wta", "weighted"]
SCOPES = ["forward", "backward", "grad-weight", "straight-through"]
fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A cache with the kernels, built once for all workers."""
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler")
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "native-cache"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setenv(system.CACHE, str(folder))
        build.build()
    return folder


@pytest.fixture
def on(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Kernels]:
    """The kernels, in use."""
    monkeypatch.setenv(system.CACHE, str(built))
    monkeypatch.setenv(native.VARIABLE, "1")
    native.look_again()
    found = native.kernels()
    assert found is not None
    yield found
    native.look_again()


class Off:
    """The kernels, not in use for the time of a block."""

    def __enter__(self) -> None:
        self.before = os.environ[native.VARIABLE]
        os.environ[native.VARIABLE] = "0"
        native.look_again()

    def __exit__(self, *raised: object) -> None:
        os.environ[native.VARIABLE] = self.before
        native.look_again()


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@fixtures
@given(st.integers(2, 300), st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]), st.data())
def test_the_draws_are_those_of_torch(on: Any, n: int, seed: int, dtype: torch.dtype, data: Any) -> None:
    k = data.draw(st.integers(1, n - 1))
    scores = drawn(seed, 1, n, dtype=dtype).abs().pow(data.draw(st.sampled_from([0.5, 1, 6])))
    generator = torch.Generator()
    results = []
    for off in (True, False):
        with Off() if off else pytest.MonkeyPatch.context():
            results.append(
                (
                    draws.largest(scores, k),
                    draws.inclusion(scores, k),
                    *draws.proportional(scores, k, generator.manual_seed(seed)),
                    *draws.independent(scores, k, generator.manual_seed(seed)),
                    torch.rand(3, generator=generator),  # as many numbers were taken
                )
            )
    wanted, ours = results
    assert torch.allclose(ours[1], wanted[1], rtol=1e-9, atol=0)
    for one, other in zip(ours, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other) or torch.allclose(one.double(), other.double(), rtol=1e-6, atol=0)


@fixtures
@given(
    st.tuples(st.integers(1, 300), st.integers(2, 80), st.integers(1, 100)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 1000),
    st.data(),
)
def test_a_product_and_its_gradients(
    on: Any, sizes: tuple[int, int, int], inner: bool, biased: bool, dtype: torch.dtype, seed: int, data: Any
) -> None:
    rows, pairs, columns = sizes
    k = data.draw(st.integers(1, pairs))
    left, right = drawn(seed, rows, pairs, dtype=dtype), drawn(seed + 1, pairs, columns, dtype=dtype)
    grad, bias = drawn(seed + 2, rows, columns, dtype=dtype), drawn(seed + 3, columns, dtype=dtype)
    index = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))[:k].sort().values
    scale = drawn(seed + 4, 1, k, dtype=dtype) if data.draw(st.booleans()) else None
    results = []
    for fused in (True, False):
        leaves = [one.clone().requires_grad_() for one in (left, right.t() if inner else right, bias)]
        a, given_right, b = leaves
        b = b if biased else None
        if fused:
            result = on.product(
                a, given_right.t().contiguous().t() if inner else given_right, b, index[None], scale, inner
            )
        else:
            kept = a[:, index] if scale is None else a[:, index] * scale
            result = kept @ (given_right.t() if inner else given_right)[index]
            result = result if b is None else result + b
        result.backward(grad)
        results.append([result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for ours, wanted in zip(*results, strict=True):
        assert torch.allclose(ours, wanted, atol=tolerance * float(wanted.abs().max() + 1))
    outer = on.outer(left.t().contiguous(), right, index[None], scale)
    factors = torch.ones(1, k, dtype=dtype) if scale is None else scale
    wanted = left.t()[index].t() * factors @ right[index]
    assert torch.allclose(outer, wanted, atol=tolerance * float(wanted.abs().max() + 1))


@fixtures
@given(
    st.integers(1, 70), st.integers(1, 90), st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.data(),
)  # fmt: skip
def test_columns_are_taken_and_spread(
    on: Any, rows: int, n: int, unique: bool, dtype: torch.dtype, data: Any
) -> None:
    k = data.draw(st.integers(1, n))
    places = torch.arange(n) if unique else torch.arange(n).repeat(2)
    index = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(k))[:k]].sort().values
    matrix = drawn(rows, rows, n, dtype=dtype)
    kept = on.take(matrix, index)
    assert torch.equal(kept, matrix[:, index])
    torch.testing.assert_close(on.spread(kept, index, n), torch.zeros_like(matrix).index_add_(1, index, kept))
    wide = matrix if dtype == torch.float64 else matrix.float()
    torch.testing.assert_close(on.energies(matrix), wide.square().sum(0))


@pytest.mark.parametrize("policy", ["topk", "pps", "crs"])
@pytest.mark.parametrize("last", [True, False])
def test_a_convolution_with_and_without_them(on: Any, policy: str, last: bool) -> None:
    torch.manual_seed(0)
    form = torch.channels_last if last else torch.contiguous_format
    layer = sampled(nn.Conv2d(12, 8, 3), site="layer", policy=policy, keep=0.5).to(memory_format=form)
    x = torch.randn(5, 12, 9, 7).to(memory_format=form)
    grad, other = torch.randn(5, 8, 7, 5), copy.deepcopy(layer)
    ours = trained(layer, x, grad)
    with Off():
        same(ours, trained(other, x, grad))


def trained(layer: nn.Module, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The result and the gradients of two steps of training."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    torch.manual_seed(3)
    for _ in range(2):
        result = layer(x)
        result.backward(grad)
    assert x.grad is not None
    return [
        result.detach(),
        x.grad,
        *(one.grad.clone() for one in layer.parameters() if one.grad is not None),
    ]


def same(ours: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(ours) == len(wanted)
    for one, other in zip(ours, wanted, strict=True):
        assert one.stride() == other.stride()
        torch.testing.assert_close(one, other, equal_nan=True)


@pytest.mark.parametrize("policy", PAIR_POLICIES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("laid_out", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(10,), (2, 5)])
def test_a_layer_with_and_without_them(
    on: Any, policy: str, scope: str, laid_out: bool, bias: bool, rows: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(60, 40, bias=bias)
    if laid_out:
        layer.weight.data = layer.weight.data.t().contiguous().t()
    layer = sampled(layer, site="layer", policy=policy, keep=0.4, scope=scope)
    other = copy.deepcopy(layer)
    x, grad = torch.randn(*rows, 60), torch.randn(*rows, 40)
    ours = trained(layer, x, grad)
    with Off():
        same(ours, trained(other, x, grad))


@pytest.mark.parametrize("scope", ["forward", "backward"])
@pytest.mark.parametrize("bias", [torch.randn(1), torch.randn(80)[::2]])
def test_a_bias_that_is_broadcast_or_strided(on: Any, scope: str, bias: Tensor) -> None:
    layer = sampled(nn.Linear(60, 40), site="layer", policy="topk", keep=0.4, scope=scope)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    layer.bias = nn.Parameter(bias)
    other, x, grad = copy.deepcopy(layer), torch.randn(10, 60), torch.randn(10, 40)
    ours = trained(layer, x, grad)
    with Off():
        same(ours, trained(other, x, grad))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_passes_through(on: Any, scope: str, bad: float) -> None:
    torch.manual_seed(0)
    layer = sampled(nn.Linear(60, 40), site="layer", policy="topk", keep=0.4, scope=scope)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    x, grad = torch.randn(10, 60), torch.randn(10, 40)
    x[3, 7] = bad
    other = copy.deepcopy(layer)
    ours = trained(layer, x, grad)
    with Off():
        same(ours, trained(other, x, grad))
    assert not ours[0][3].isfinite().any()


@pytest.mark.parametrize("scope", ["forward", "backward"])
def test_a_flop_counter_sees_torchs_operations(on: Any, scope: str) -> None:
    layer = sampled(nn.Linear(100, 50, bias=False), site="layer", policy="topk", keep=0.1, scope=scope)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(20, 100, requires_grad=True)).sum().backward()
    whole = 2 * 20 * 100 * 50
    assert counter.get_total_flops() == pytest.approx(0.3 * whole if scope == "forward" else 1.2 * whole)


@pytest.mark.parametrize("scope", ["forward", "backward"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputed_forward_draws_the_same(on: Any, scope: str, reentrant: bool) -> None:
    torch.manual_seed(0)
    layer = sampled(nn.Linear(60, 40), site="layer", policy="pps", keep=0.4, scope=scope)
    layer.weight.data = layer.weight.data.t().contiguous().t()
    other, x = copy.deepcopy(layer), torch.randn(10, 60)
    torch.manual_seed(1)
    layer(x).sum().backward()
    torch.manual_seed(1)
    again = x.clone().requires_grad_()
    checkpoint(other, again, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(layer.weight.grad, other.weight.grad)


def test_copies_go_on_with_draws_of_their_own(on: Any) -> None:
    torch.manual_seed(0)
    layer = sampled(nn.Linear(60, 40), site="layer", policy="pps", keep=0.4)
    x = torch.randn(10, 60)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    wanted = [layer(x) for _ in range(3)]
    for one in copies:
        assert one._fxapprox.lane.draw.__self__ is one._fxapprox.parts[""]
        for result in wanted:
            assert torch.equal(one(x), result)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("leaky", [True, False])
def test_a_rectifiers_bits(on: Any, last: bool, leaky: bool) -> None:
    torch.manual_seed(0)
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(4, 32, 24, 24).to(memory_format=form)
    x[0, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), 0.0])
    layer = sampled(nn.Conv2d(32, 8, 3), site="layer", policy="topk", keep=0.5).to(memory_format=form)
    act = nn.LeakyReLU() if leaky else nn.ReLU()
    results = []
    for fused in (True, False):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        after = act(given)
        layer(after)
        if not fused:  # as torch does it
            after = act(given)
        (found,) = torch.autograd.grad(after, given, torch.ones_like(after))
        results.append(found)
    assert torch.equal(*results)
    bits = on.pack(x, leaky)
    assert bits.dtype == torch.int16
    wanted = (x > 0 if leaky else x != 0).float()
    assert torch.equal(on.unpack(bits, x.shape, x.stride()), wanted)


def test_second_derivatives_are_refused(on: Any) -> None:
    for scope in ("forward", "backward"):
        layer = sampled(nn.Linear(60, 40), site="layer", policy="topk", keep=0.4, scope=scope)
        layer.weight.data = layer.weight.data.t().contiguous().t()
        x = torch.randn(10, 60, requires_grad=True)
        result = layer(x).square().sum()
        with pytest.raises(RuntimeError):
            torch.autograd.grad(torch.autograd.grad(result, x, create_graph=True)[0].sum(), x)


def test_an_exception_in_the_backward_pass_stays_itself(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unlucky(Exception):
        pass

    def select(*_: Any) -> None:
        raise Unlucky("no draw")

    layer = sampled(nn.Linear(60, 40), site="layer", policy="pps", keep=0.4, scope="backward")
    result = layer(torch.randn(10, 60)).sum()
    monkeypatch.setattr(type(policies.get("pps")()), "select", select)
    with pytest.raises(Unlucky, match="no draw"):
        result.backward(retain_graph=True)
    monkeypatch.undo()
    result.backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("scope", ["forward", "backward"])
def test_forward_mode_is_refused(on: Any, scope: str) -> None:
    layer = sampled(nn.Linear(60, 40), site="layer", policy="topk", keep=0.4, scope=scope)
    x = torch.randn(10, 60)
    with forward_ad.dual_level(), pytest.raises(RuntimeError):
        layer(forward_ad.make_dual(x, torch.randn_like(x)))
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda x: layer(x).sum())(x)


def test_the_contracts_hold_with_them(on: Any) -> None:
    check_kind(kinds.get("linear"))
    for policy in ("topk", "pps", "bernoulli"):
        check_policy(policies.get(policy))


# building them


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(system.CACHE, str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RequestError, match="no-such-compiler"):
        build.build()
    (tmp_path / "file").touch()
    monkeypatch.setenv(system.CACHE, str(tmp_path / "file" / "below"))
    with pytest.raises(RequestError, match="cannot be written"):
        build.build()


def test_a_damaged_library_is_done_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(system.CACHE, str(tmp_path))
    monkeypatch.setenv(native.VARIABLE, "1")
    path = native.library()
    assert not build.fits(path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * 100)
    assert not build.fits(path)
    native.look_again()
    with pytest.warns(UserWarning, match="cannot be loaded"):
        assert native.kernels() is None
    native.look_again()


def test_a_signal_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv(system.CACHE, str(tmp_path))
    monkeypatch.setattr("torch.utils.cpp_extension.load", stopped)
    with pytest.raises(KeyboardInterrupt):
        build.build()
    assert list((tmp_path / "native").iterdir()) == []


def test_kernels_that_compute_something_else_are_refused(on: Any) -> None:
    class Wrong:
        scores, largest = on.scores, on.largest

        @staticmethod
        def product(left: Tensor, *rest: Any) -> Tensor:
            return on.product(left * 1.01, *rest)

    build.check(on)
    with pytest.raises(RequestError, match="something else"):
        build.check(Wrong)
