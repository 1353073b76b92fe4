"""Two processes that train one rewritten model: gradients are averaged, draws are each rank's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import fxapprox

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


POLICIES = ("topk", "uniform")


def _train(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {}
    for policy in POLICIES:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 4, bias=False))
        x = torch.randn(8, 16)
        fast = fxapprox.rewrite(model, (x,), policy=policy, keep=0.5)
        wrapped = nn.parallel.DistributedDataParallel(fast)
        torch.manual_seed(7)
        output = wrapped(x)
        output.sum().backward()
        found[policy] = (output.detach(), fast[0].weight.grad)
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_ranks_train_together(tmp_path: Path) -> None:
    mp.spawn(_train, args=(str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for policy in POLICIES:
        (output, grad), (others_output, others_grad) = one[policy], other[policy]
        assert torch.equal(grad, others_grad)
        assert torch.equal(output, others_output) == (policy == "topk")
