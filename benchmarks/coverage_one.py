"""One model of the zoo through the whole way; prints one line of JSON. Run by `benchmarks.coverage`."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
MATMULS = {aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.mv, aten.dot, aten.addmv, aten._grouped_mm}
CONVOLUTIONS = {aten.convolution, aten._convolution, aten.mkldnn_convolution, aten.convolution_overrideable}


class KernelFlops(TorchDispatchMode):
    """FLOPs of the forward's matrix products, 2 per multiply-add, counted at the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if packet in CONVOLUTIONS:
            x, w = tensors[0], tensors[1]
            transposed = bool(args[6]) if packet is aten.convolution else False
            positions = math.prod((x if transposed else result).shape[2:])
            self.total += 2 * x.shape[0] * positions * w.numel()
        elif packet in MATMULS:
            operands = [t for t in tensors if t.dim() >= 1][-2:]
            a, b = operands
            columns = b.shape[-1] if b.dim() > 1 else 1
            self.total += 2 * a.numel() * columns
        elif "scaled_dot_product" in packet.__name__ or "flash_attention" in packet.__name__:
            q, k, v = tensors[:3]
            self.total += 2 * math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        elif packet.__name__ in ("mkldnn_rnn_layer", "lstm", "gru"):
            x = tensors[0]
            self.total += sum(2 * w.numel() for w in tensors[1:5] if w.dim() == 2) * math.prod(x.shape[:-1])
        return result


def outputs_of(value: Any) -> list[Tensor]:
    """The floating tensors in any output."""
    if isinstance(value, Tensor):
        leaves: list[Any] = [value]
    elif hasattr(value, "to_tuple"):
        leaves = tree_leaves(value.to_tuple())
    else:
        leaves = tree_leaves(value)
    return [
        leaf
        for leaf in leaves
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]


def different(ours: Any, theirs: Any) -> str | None:
    """What differs beyond rounding, None where nothing does."""
    a, b = outputs_of(ours), outputs_of(theirs)
    if len(a) != len(b):
        return f"{len(a)} outputs, wanted {len(b)}"
    for position, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.shape != y.shape or x.dtype != y.dtype:
            return f"output {position} is {tuple(x.shape)} {x.dtype}, wanted {tuple(y.shape)} {y.dtype}"
        if not torch.allclose(
            x,
            y,
            rtol=1e-3,
            atol=1e-4 * max(1.0, float(y.detach().abs().nan_to_num().max())) if y.numel() else 0.0,
            equal_nan=True,
        ):
            return f"output {position} differs by {float((x - y).abs().max()):.2g}"
    return None


def larger(value: Any, batch: int) -> Any:
    """Every tensor whose first dimension is the batch, one example longer."""

    def grow(leaf: Any) -> Any:
        same = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch
        return torch.cat([leaf, leaf[:1]]) if same else leaf

    return tree_map(grow, value)


def loss_of(value: Any) -> Tensor:
    return torch.stack([out.abs().square().mean() for out in outputs_of(value) if out.requires_grad]).sum()


FRESH = """
import sys, importlib.abc
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED: raise ModuleNotFoundError(f"{name} is blocked", name=name)
BLOCKED = set(sys.argv[3:])
sys.meta_path.insert(0, Block())
import json, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from emitted import build_model
bag = torch.load(sys.argv[2], weights_only=False)
from benchmarks.coverage_one import different, loss_of, outputs_of
model = build_model()
missing = model.load_state_dict(bag["state"], strict=True)
model.eval()
torch.manual_seed(0)
with torch.no_grad():
    wrong = different(model(*bag["args"], **bag["kwargs"]), bag["eval"])
if wrong: print(json.dumps({"error": "eval: " + wrong})); sys.exit()
model.train()
torch.manual_seed(0)
out = model(*bag["args"], **bag["kwargs"])
wrong = different(out, bag["train"])
if wrong: print(json.dumps({"error": "train: " + wrong})); sys.exit()
loss_of(out).backward()
grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
if set(grads) != set(bag["grads"]): print(json.dumps({"error": "gradients of other parameters"})); sys.exit()
for n, g in bag["grads"].items():
    wrong = different(grads[n], g)
    if wrong: print(json.dumps({"error": f"gradient of {n}: {wrong}"})); sys.exit()
print(json.dumps({"ok": True}))
"""


def emitted(fast: nn.Module, args: Any, kwargs: Any, state: dict[str, Tensor], package: str) -> str:
    """ "yes", or why the emitted file does not do the same in a fresh process."""
    import fxapprox

    with tempfile.TemporaryDirectory() as scratch:
        fxapprox.emit(fast, Path(scratch) / "emitted.py")
        fast.load_state_dict(state)
        torch.manual_seed(0)
        with torch.no_grad():
            evaluated = outputs_of(fast.eval()(*args, **kwargs))
        fast.train()
        fast.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        out = fast(*args, **kwargs)
        loss_of(out).backward()
        grads = {n: p.grad for n, p in fast.named_parameters() if p.grad is not None}
        bag = {"args": args, "kwargs": kwargs, "state": state, "eval": evaluated,
               "train": [o.detach() for o in outputs_of(out)], "grads": grads}  # fmt: skip
        torch.save(bag, Path(scratch) / "bag.pt")
        (Path(scratch) / "fresh.py").write_text(FRESH)
        text = (Path(scratch) / "emitted.py").read_text()
        # an output class of the package's (transformers), or a module that keeps the user's own class
        opaque = package != "torch" and (f"import {package}" in text or f"from {package}" in text)
        blocked = [] if opaque or package == "torch" else [package]
        command = [
            sys.executable,
            str(Path(scratch) / "fresh.py"),
            scratch,
            str(Path(scratch) / "bag.pt"),
            *blocked,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            return "no: " + (done.stderr.strip().splitlines() or ["no output"])[-1][:200]
        verdict = json.loads(lines[-1])
        if "error" in verdict:
            return "no: " + verdict["error"]
        return "yes" if not opaque else f"yes, imports {package}"


def stages(name: str, row: dict[str, Any]) -> Iterator[str]:
    """Run the stages; yields the name of each before it runs."""
    from .zoo import ZOO

    entry = next(entry for entry in ZOO if entry.name == name)
    yield "build"
    torch.manual_seed(0)
    model, args, kwargs = entry.build()
    model.train()
    state = copy.deepcopy(model.state_dict())
    yield "exact"
    torch.manual_seed(0)
    counter = KernelFlops()
    with counter:
        copy.deepcopy(model)(*args, **kwargs)
    yield "rewrite"
    import fxapprox
    from fxapprox.record import record_of

    started = time.perf_counter()
    fast = fxapprox.rewrite(model, args, kwargs, policy="topk", keep=0.5, gate=False)
    record = record_of(fast)
    sites = [decision.site for decision in record.plan.decisions]
    able = [site for site in sites if site.refusal is None]
    total = max(counter.total, 1)
    row.update(
        rung=record.rung,
        rewrite_seconds=round(time.perf_counter() - started, 2),
        ours=round(sum(v for k, v in record.seconds.items() if k not in ("check", "verify")), 2),
        sites=len(sites),
        samplable=len(able),
        rewritten=len(record.plan.rewritten),
        share=min(1.0, sum(site.products["forward"].flops for site in sites) / total),
        samplable_share=min(1.0, sum(site.products["forward"].flops for site in able) / total),
        notes=[f"{note.topic} {note.module}: {note.message}" for note in record.notes][:6],
    )
    yield "eval"
    model.eval(), fast.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        theirs = model(*args, **kwargs)
        torch.manual_seed(0)
        wrong = different(fast(*args, **kwargs), theirs)
    assert wrong is None, wrong
    yield "state_dict"
    fast.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(fast.state_dict(), strict=True)
    yield "train"
    model.train(), fast.train()
    loss_of(fast(*args, **kwargs)).backward()
    exact = copy.deepcopy(model)
    loss_of(exact(*args, **kwargs)).backward()
    have = {n for n, p in fast.named_parameters() if p.grad is not None}
    want = {n for n, p in exact.named_parameters() if p.grad is not None}
    assert have == want, f"gradients of {len(have)} parameters, wanted {len(want)}: {sorted(have ^ want)[:3]}"
    torch.optim.SGD(fast.parameters(), lr=1e-3).step()
    yield "another batch size"
    batch = next(leaf.shape[0] for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
    more_args, more_kwargs = larger(args, batch), larger(kwargs, batch)
    try:
        exact(*more_args, **more_kwargs)
    except Exception:
        pass
    else:
        loss_of(fast(*more_args, **more_kwargs)).backward()
    yield "emit"
    row["emitted"] = emitted(fast, args, kwargs, state, entry.package)


def main(name: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": name}
    stage = "start"
    try:
        for reached in stages(name, row):
            stage = reached
    except ModuleNotFoundError as error:
        row.update(stage="skipped" if stage == "build" else stage, error=str(error))
    except Exception as error:
        row.update(stage=stage, error=f"{type(error).__name__}: {error}"[:600])
        traceback.print_exc()
    print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1])
