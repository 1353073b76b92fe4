"""Grouped matrix products, as mixtures of experts use them: listed with their FLOPs, never sampled."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from ._arguments import arguments
from ._base import Call, OneProduct, Refusal, kind

# torch.nn.functional.grouped_mm (2.10 and later) arrives as torch._grouped_mm
FOUND = (getattr(torch, "_grouped_mm", None), getattr(F, "grouped_mm", None))


@kind("grouped_mm", summary="torch._grouped_mm, one matrix per expert; never sampled")
class GroupedMM(OneProduct):
    """`mat_a [tokens, in]`, cut by `offs` into one slice per expert, times `mat_b [experts, in, out]`.

    How many rows meet which matrix is data, known only on the device while the step runs: the scores of
    a pair would need one norm per expert and slice, and the shortened call a gather per expert."""

    functions = tuple(function for function in FOUND if function is not None)

    def operation(self, call: Call) -> Refusal:
        # torch._grouped_mm calls them input and mat2, torch.nn.functional.grouped_mm mat_a and mat_b
        old = {"input": "mat_a", "mat2": "mat_b"}
        given = {old.get(name, name): value for name, value in arguments(call, "mat_a", "mat_b").items()}
        a, b = given["mat_a"], given["mat_b"]
        groups = next((t.shape[0] for t in (b, a) if t.dim() == 3), None)
        # each element of mat_a meets one row of one matrix; where mat_b is the one that is cut, a slice of it
        columns = b.shape[-1] // max(a.shape[0], 1) if (a.dim(), b.dim()) == (3, 2) else b.shape[-1]
        many = "several" if groups is None else str(groups)
        reason = (
            f"{many} matrices share {a.shape[-2]} rows by offsets that are known only while the step runs"
        )
        return Refusal(reason, 2 * a.numel() * columns, tuple(a.shape), tuple(b.shape))

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        if dtype is torch.float64 or not cls.functions:  # torch has no kernel for it
            return
        ends = torch.tensor([3, 8], dtype=torch.int32)
        a = torch.randn(8, 16, dtype=dtype, requires_grad=True)
        b = torch.randn(2, 16, 24, dtype=dtype, requires_grad=True)
        yield Call((a, b), {"offs": ends}, function=cls.functions[0])
