"""Layers, exact and sampled, in turn in one process, beside their limit: the exact operation on the kept
part alone. Forward and backward, of the layer and of its input.

    python -m benchmarks.kernels                         # the whole table
    python -m benchmarks.kernels linear-1000 conv-128    # cases whose names begin so
    python -m benchmarks.kernels --keep 0.1 --policy pps --scope backward --threads 2 --json kernels.json

Times are microseconds of the wall; with one thread the thread's own, in which other processes do not
count. `low` is the lower quartile, which a busy machine disturbs least. `ratio` is exact/ours, `bound`
exact/limit, both medians over the rounds, and `reach` the share of the limit that ours attains: limit/ours.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fxapprox

from .machine import machine

Step = Callable[[], object]
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


@dataclass(frozen=True)
class Rival:
    """One contender: a step, and how its gradients are dropped before it."""

    step: Step
    tensors: tuple[Tensor, ...]


def layer_step(layer: nn.Module, x: Tensor, grad: Tensor) -> Rival:
    """Forward and backward of a layer on a leaf input, gradients of all parameters and the input."""
    x = x.detach().requires_grad_()

    def step() -> None:
        layer(x).backward(grad)

    return Rival(step, (x, *layer.parameters()))


def rivals(case: Case, keep: float, policy: str, scope: str) -> dict[str, Rival]:
    """Exact, ours, and the limit of this case."""
    torch.manual_seed(0)
    layer = case.layer()
    x = torch.randn(case.shape)
    if case.last:
        layer, x = layer.to(memory_format=LAST), x.to(memory_format=LAST)
    ours = fxapprox.rewrite(nn.Sequential(layer), (x[:2],), policy=policy, keep=keep, scope=scope, gate=False)
    grad = torch.randn_like(layer(x))
    return {
        "exact": layer_step(layer, x, grad),
        "ours": layer_step(ours, x, grad),
        "limit": limit(case, layer, x, grad, keep, scope),
    }


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


def keep_memory() -> None:
    """Have glibc keep what is freed, as it does in a process that is warm: contenders of other sizes between
    the steps make it give memory back, and the next step then pays for a thousand page faults."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        for option in (trim, mmap):
            library.mallopt(option, 1 << 30)


def _cut(tensor: Tensor, dim: int, size: int) -> Tensor:
    """The first `size` along `dim`, dense, in the memory format that the tensor has."""
    return torch.empty_like(tensor.narrow(dim, 0, size)).copy_(tensor.narrow(dim, 0, size)).detach()


def rounds(contenders: dict[str, Rival], seconds: float) -> Iterator[dict[str, float]]:
    """Rounds of one timed step each, in turn, seconds; the first two of each are not given."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    ends = time.perf_counter() + seconds
    count = 0
    while count < 7 or time.perf_counter() < ends:
        times = {}
        for name, rival in contenders.items():
            for tensor in rival.tensors:
                tensor.grad = None
            started = clock()
            rival.step()
            times[name] = clock() - started
        count += 1
        if count > 2:
            yield times


def measured(case: Case, keep: float, policy: str, scope: str, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    found = list(rounds(rivals(case, keep, policy, scope), seconds))
    row: dict[str, Any] = {
        "case": case.name,
        "keep": keep,
        "policy": policy,
        "scope": scope,
        "rounds": len(found),
    }
    for name in found[0]:
        times = sorted(1e6 * times[name] for times in found)
        row[f"{name}_us"] = round(statistics.median(times), 1)
        row[f"{name}_low_us"] = round(times[len(times) // 4], 1)
        row[f"{name}_min_us"] = round(times[0], 1)
    for name, above, below in (
        ("ratio", "exact", "ours"),
        ("bound", "exact", "limit"),
        ("reach", "limit", "ours"),
    ):
        row[name] = round(statistics.median(times[above] / times[below] for times in found), 3)
        row[f"{name}_low"] = round(row[f"{above}_low_us"] / row[f"{below}_low_us"], 3)
    return row


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """What is printed."""
    out = Table("case", "what is sampled", "exact µs", "ours µs", "limit µs", "ratio", "bound", "reach")
    out.columns[0].no_wrap = True
    for row in rows:
        numbers = [f"{row[f'{name}_low_us']:.0f}" for name in ("exact", "ours", "limit")]
        shares = [f"{row[name]:.2f}" for name in ("ratio", "bound", "reach")]
        what = f"{row['policy']} {row['keep']:g} {row['scope']}"
        out.add_row(row["case"], what, *numbers, *shares)
    return out


def main(
    cases: Annotated[
        list[str] | None, typer.Argument(help="Cases whose names begin so; all by default.")
    ] = None,
    keep: Annotated[list[float], typer.Option(help="Repeatable.")] = [0.5],  # noqa: B006 - typer's way
    policy: Annotated[list[str], typer.Option(help="Repeatable.")] = ["topk"],  # noqa: B006
    scope: Annotated[list[str], typer.Option(help="Repeatable.")] = ["forward"],  # noqa: B006
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    seconds: Annotated[float, typer.Option(help="Time for one row.")] = 3.0,
    system_allocator: Annotated[bool, typer.Option(help="Leave the C library's thresholds alone.")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the results here.")] = None,
) -> None:
    """Time layers, exact and sampled, beside their limit."""
    torch.set_num_threads(threads)
    if not system_allocator:
        keep_memory()
    wanted = [case for case in CASES if not cases or any(case.name.startswith(name) for name in cases)]
    if not wanted:
        raise typer.BadParameter(f"no such case; there are {', '.join(case.name for case in CASES)}")
    work = [(case, k, p, s) for case in wanted for k in keep for p in policy for s in scope]
    err = Console(stderr=True)
    rows = [measured(*item, seconds) for item in track(work, "measuring", console=err)]
    Console().print(table(rows))
    if out is not None:
        out.write_text(
            json.dumps({"about": machine("python -m benchmarks.kernels"), "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    typer.run(main)
