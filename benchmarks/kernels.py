"""Layers, exact and sampled, in turn in one process, beside their limit: the exact operation on the kept
part alone. Forward and backward, of the layer and of its input.

    python -m benchmarks.kernels linear-1000 conv-128    # cases whose names begin so
    python -m benchmarks.kernels --keep 0.1 --policy topk --policy pps --scope backward --threads 2

A probe for whoever works on a layer; the table that is kept is that of `python -m benchmarks.suite`.
Times are milliseconds of the wall; with one thread the thread's own, in which other processes do not
count. `low` is the lower quartile, which a busy machine disturbs least. `ratio` is exact/ours, `bound`
exact/limit, medians over the rounds, and `reach` the share of the limit that ours attains: limit/ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fxapprox
from fxapprox import native

from .turns import Claim, Rival, keep_memory, rounds, told

LAST = torch.channels_last


@dataclass(frozen=True)
class Case:
    """A layer and the shape of its input. `last`: the layer and its input are channels_last."""

    name: str
    layer: Callable[[], nn.Module]
    shape: tuple[int, ...]
    last: bool = False

    @property
    def convolution(self) -> bool:
        return len(self.shape) == 4


def linear(rows: tuple[int, ...], inner: int, outer: int) -> Case:
    return Case(
        f"linear-{inner}-{outer}-{'x'.join(map(str, rows))}", lambda: nn.Linear(inner, outer), (*rows, inner)
    )


def conv(channels: int, side: int, batch: int, last: bool) -> Case:
    name = f"conv-{channels}-{side}-{'nhwc' if last else 'nchw'}"
    return Case(
        name, lambda: nn.Conv2d(channels, channels, 3, padding=1), (batch, channels, side, side), last
    )


CASES = [
    linear((20,), 1000, 1000),
    linear((64,), 1000, 1000),
    linear((128,), 1024, 1024),
    linear((256,), 2048, 2048),
    linear((16, 128), 768, 3072),
    *(conv(*sizes, 64, last) for sizes in ((64, 32), (128, 16), (512, 8)) for last in (False, True)),
]


def layer_step(layer: nn.Module, x: Tensor, grad: Tensor) -> Rival:
    """Forward and backward of a layer on a leaf input, gradients of all parameters and the input."""
    x = x.detach().requires_grad_()

    def step() -> None:
        layer(x).backward(grad)

    return Rival(step, (x, *layer.parameters()))


def contenders(case: Case, keep: float, policies: Sequence[str], scope: str) -> dict[str, Rival]:
    """ "exact" (of a convolution in both memory formats), each policy by its name, "unfused" (the first of
    them without the fused kernels, where these are built) and "limit"."""
    layer, x, grad = operands(case)
    found = {"exact": layer_step(layer, x, grad)}
    if case.convolution:
        here, there = ("nhwc", "nchw") if case.last else ("nchw", "nhwc")
        other = replace(case, last=not case.last)
        found = {f"exact {here}": found["exact"], f"exact {there}": layer_step(*operands(other))}
    for name in policies:
        ours = fxapprox.rewrite(
            nn.Sequential(layer), (x[:2],), policy=name, keep=keep, scope=scope, gate=False
        )
        found[name] = layer_step(ours, x, grad)
        if name == policies[0] and native.kernels() is not None and not case.convolution:
            without = partial(mock.patch.object, native, "_known", [None])
            found["unfused"] = replace(found[name], around=without)
    return found | {"limit": limit(case, layer, x, grad, keep, scope)}


def operands(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """The layer, an input and a gradient of its output."""
    torch.manual_seed(0)
    layer, x = case.layer(), torch.randn(case.shape)
    if case.last:
        layer, x = layer.to(memory_format=LAST), x.to(memory_format=LAST)
    return layer, x, torch.randn_like(layer(x))


def limit(case: Case, layer: Any, x: Tensor, grad: Tensor, keep: float, scope: str) -> Rival:
    """The exact operation on the kept part alone: nothing chosen, nothing gathered, nothing spread out."""
    pairs = layer.weight.shape[1]
    if scope == "forward":
        k = int(keep * pairs)
        small = type(layer)(
            k, layer.weight.shape[0], **({"kernel_size": 3, "padding": 1} if case.convolution else {})
        )
        short = _cut(x, 1 if case.convolution else -1, k)
        return layer_step(small.to(memory_format=LAST) if case.last else small, short, grad)
    return parts(case, layer, x, grad, keep, scope)


def parts(case: Case, layer: Any, x: Tensor, grad: Tensor, keep: float, scope: str) -> Rival:
    """The three products as separate calls, those that `scope` samples on the kept part alone."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    dim = 1 if case.convolution else -1
    outs = int(keep * weight.shape[0]) if scope == "backward" else weight.shape[0]
    if not case.convolution:
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)
    rows = int(keep * x.shape[0])
    grad_o, weight_o = _cut(grad, dim, outs), _cut(weight, 0, outs)
    grad_b, x_b = _cut(grad, 0, rows), _cut(x, 0, rows)
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    def step() -> object:
        if not case.convolution:
            return nn.functional.linear(x, weight, bias), grad_o @ weight_o, grad_b.t() @ x_b, grad.sum(0)
        backward = torch.ops.aten.convolution_backward
        return (
            nn.functional.conv2d(x, weight, bias, padding=1),
            backward(grad_o, x, weight_o, None, *geometry, [True, False, False]),
            backward(grad_b, x_b, weight, None, *geometry, [False, True, False]),
            grad.sum((0, 2, 3)),
        )

    return Rival(step, ())


def _cut(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The first `size` along `dim`, dense, in the memory format that the tensor has."""
    return torch.empty_like(tensor.narrow(dim, 0, size)).copy_(tensor.narrow(dim, 0, size)).detach()


def table(rows: Sequence[tuple[str, str, dict[str, Any]]]) -> Table:
    """What is printed: the lower quartiles, and the ratios of the medians within the rounds."""
    out = Table("case", "what is sampled", "exact", "ours", "limit", "ratio", "bound", "reach")
    out.columns[0].no_wrap = True
    for name, how, row in rows:
        times, claims = row["milliseconds"], row["claims"]
        for ratio, bound, reach in zip(claims[::3], claims[1::3], claims[2::3], strict=True):
            exact, ours = ratio["forms"]
            low = [f"{times[one][0]:.4g}" for one in (exact, ours, "limit")]
            shares = [f"{one['value'][1]:.2f}" for one in (ratio, bound, reach)]
            out.add_row(name, f"{ours} {how}", *low, *shares)
    return out


def main(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Cases whose names begin so; all by default.")
    ] = None,
    keep: Annotated[list[float], typer.Option(help="Repeatable.")] = [0.5],  # noqa: B006 - typer's way
    policy: Annotated[list[str], typer.Option(help="Repeatable; in the same rounds.")] = ["topk"],  # noqa: B006
    scope: Annotated[list[str], typer.Option(help="Repeatable.")] = ["forward"],  # noqa: B006
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    seconds: Annotated[float, typer.Option(help="Time for one row.")] = 3.0,
    system_allocator: Annotated[bool, typer.Option(help="Leave the C library's thresholds alone.")] = False,
) -> None:
    """Time layers, exact and sampled, beside their limit; milliseconds."""
    torch.set_num_threads(threads)
    if not system_allocator:
        keep_memory()
    wanted = [case for case in CASES if not cases or any(case.name.startswith(name) for name in cases)]
    if not wanted:
        raise typer.BadParameter(f"no such case; there are {', '.join(case.name for case in CASES)}")
    work = [(case, k, s) for case in wanted for k in keep for s in scope]
    rows = []
    for case, k, s in track(work, "measuring", console=Console(stderr=True)):
        claims = [Claim(*pair) for p in policy for pair in (("exact", p), ("exact", "limit"), ("limit", p))]
        found = rounds(contenders(case, k, policy, s), seconds)
        rows.append((case.name, f"{k:g} {s}", told(found, claims)))
    Console().print(table(rows))


if __name__ == "__main__":
    typer.run(main)
