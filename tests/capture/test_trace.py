"""What a trace returns: sites, data flow, texts, notes; and how it fails."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from replay import check_replay
from torch import nn

from fxapprox.capture._types import Inputs
from fxapprox.capture.guards import odd_argument
from fxapprox.capture.hooks import by_hooks
from fxapprox.capture.runs import Workshop
from fxapprox.capture.trace import trace
from fxapprox.errors import CaptureError


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.scale = 0.125

    def forward(self, x, mask=None, *, heads: int = 2):
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            scores = scores.masked_fill(mask, float("-inf"))
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d)
        return x + self.out(y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv1d(4, 8, 3, padding=1), nn.ModuleList([Block(), Block()])
        self.norm, self.unused = nn.LayerNorm(8), nn.Linear(8, 8)
        self.head = nn.Parameter(torch.randn(8, 5))

    def forward(self, x):
        x = self.stem(x).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return torch.addmm(torch.zeros(5), self.norm(x).mean(1), self.head)


def images(batch: int = 2, length: int = 6) -> Inputs:
    torch.manual_seed(length)
    return Inputs((torch.randn(batch, 4, length),))


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    model = Net()
    return model, trace(model, images())


def test_sites_have_their_facts(traced):
    calls = {call.id: call for call in traced[1].calls}
    assert list(calls) == [
        "stem", "blocks.0.qkv", "blocks.0.matmul_1", "blocks.0.matmul_2", "blocks.0.out", "blocks.1.qkv",
        "blocks.1.matmul_1", "blocks.1.matmul_2", "blocks.1.out", "addmm_1",
    ]  # fmt: skip
    scores, head, out = calls["blocks.1.matmul_1"], calls["addmm_1"], calls["blocks.0.out"]
    assert (scores.owner, scores.call, scores.kind) == ("blocks.1", 1, "matmul")
    assert scores.flops == 2 * (2 * 2) * 6 * 6 * 4
    assert scores.sizes["forward"][:2] == (4, 4)
    assert scores.weight is None
    assert scores.needs_grad == (True, True)
    assert head.weight == "head"
    assert head.owner == ""
    assert head.flops == 2 * 2 * 8 * 5
    assert out.op == "Linear"
    assert out.weight == "blocks.0.out.weight"
    assert out.call is None
    assert calls["stem"].needs_grad == (False, True)
    lines = Path(__file__).read_text().splitlines()
    for call, text in ((scores, "scores = q @ k"), (head, "torch.addmm"), (out, "self.out(y)")):
        assert call.refusal is None
        assert call.calls == 1
        file, number = call.source.rsplit(":", 1)
        assert file.endswith("test_trace.py")
        assert text in lines[int(number) - 1]


def test_data_flows_from_operator_to_operator(traced):
    nodes = {operator.id: operator for operator in traced[1].operators}
    after: dict[str, set[str]] = {}
    for edge in traced[1].edges:
        after.setdefault(edge.source, set()).add(edge.target)

    def reaches(start: str, end: str) -> bool:
        front, seen = {start}, set()
        while front:
            seen |= front
            front = set().union(*(after.get(node, set()) for node in front)) - seen
        return end in seen

    assert set(after) | {t for targets in after.values() for t in targets} <= set(nodes)
    assert reaches("stem", "addmm_1")
    assert reaches("blocks.0.qkv", "blocks.0.matmul_2")
    assert not reaches("blocks.1.qkv", "blocks.0.qkv")
    assert not reaches("addmm_1", "stem")
    assert nodes["norm"].op == "LayerNorm"
    assert nodes["norm"].site is None
    assert nodes["norm"].shape == (2, 6, 8)
    assert nodes["blocks.0.matmul_1"].site == "blocks.0.matmul_1"


def test_texts_are_the_users_own_forwards(traced):
    forward = traced[1].forwards["blocks.0"]
    definition = ast.parse(forward.source).body[0]
    assert ast.unparse(definition.args) == "self, x, mask=None, *, heads=2"
    assert "q, k, v = " in forward.source
    assert "* self.scale" in forward.source
    assert ".softmax(-1)" in forward.source
    assert "self.qkv(x)" in forward.source
    assert [(call.name, call.site_ids) for call in forward.calls] == [
        ("matmul_1", ("blocks.0.matmul_1",)),
        ("matmul_2", ("blocks.0.matmul_2",)),
    ]
    for call in forward.calls:
        assert forward.source.count(f"{call.target}(") == 1
        assert forward.imports[call.target] == ("torch", "Tensor.matmul")
        assert call.function == "torch.Tensor.matmul"
    assert traced[1].forwards["blocks.1"].source == forward.source
    root = traced[1].forwards[""].source
    assert "self.blocks[0](x)" in root
    assert "self.head" in root


def test_replays_at_other_batch_sizes_and_lengths(traced):
    model, found = traced
    assert found.rung == "trace"
    assert [note.topic for note in found.notes] == ["never run"]
    check_replay(model, found, images(), images(3, 6), images(1, 11))


def test_a_named_leaf_keeps_its_forward_and_its_layers_are_sites():
    model = Net()
    for leaf in ("Block", "blocks.*"):
        found = trace(model, images(), leaf=[leaf])
        assert {note.module for note in found.notes if note.topic == "opaque"} >= {"blocks.0", "blocks.1"}
        assert found.rung == "partial"
        assert set(found.forwards) == {""}
        calls = {call.id: call for call in found.calls}
        assert calls["blocks.0.qkv"].refusal is None
        assert "named as a leaf" in calls["blocks.0.matmul_1"].refusal
        check_replay(model, found, images())


def test_what_the_check_found_wrong_is_opaque():
    found = trace(Net(), images(), opaque={"blocks.1": "gradients differ"})
    assert set(found.forwards) == {"", "blocks.0"}
    (note,) = (note for note in found.notes if note.topic != "never run")
    assert (note.topic, note.module, note.message) == ("opaque", "blocks.1", "gradients differ")
    assert "gradients differ" in {c.id: c for c in found.calls}["blocks.1.matmul_1"].refusal


def test_shared_layers_count_their_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.alias = nn.Linear(4, 4), None
            self.alias = self.layer

        def forward(self, x):
            return self.alias(self.layer(x)[:, :2].sum(1, keepdim=True) + x)

    model = Twice()
    found = trace(model, Inputs((torch.randn(3, 4),)))
    (call,) = found.calls
    assert (call.id, call.calls, call.flops) == ("layer", 2, 2 * 3 * 4 * 4)
    check_replay(model, found, Inputs((torch.randn(5, 4),)))


def test_a_computed_weight_goes_by_its_parameter():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            flat = F.batch_norm(self.weight.view(1, 6, -1), None, None, training=True)
            return F.conv2d(x, flat.reshape_as(self.weight).to(x.dtype), self.bias)

    (call,) = trace(Standardised(3, 6, 3), Inputs((torch.randn(2, 3, 8, 8),))).calls
    assert (call.id, call.kind, call.weight, call.owner) == ("conv2d_1", "conv2d", "weight", "")


def test_nothing_is_computed_for_large_models():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.device("meta"):
                self.layer = nn.Linear(100_000, 100_000)

        def forward(self, x):
            return F.linear(self.layer(x), self.layer.weight)

    found = trace(Large(), Inputs((torch.empty(2, 100_000, device="meta"),)))
    assert [call.flops for call in found.calls] == [4 * 10**10] * 2


class BySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids):
        x = self.table(ids)
        return x * 2 if ids.shape[1] > 6 else x


def test_a_branch_on_a_size_is_told_and_guarded():
    model, ids = BySize(), torch.randint(0, 10, (2, 6))
    found = trace(model, Inputs((ids,)))
    (note,) = found.notes
    assert note.topic == "frozen"
    assert note.message == (
        "sequence length 6: the forward goes another way at another one (return in one run, mul in another)"
    )
    assert note.source.partition(":")[0].endswith("test_trace.py")
    guard = found.forwards[""].guard
    assert odd_argument(guard, (ids,)) is None
    assert odd_argument(guard, (ids[:1],)) is None
    assert odd_argument(guard, (torch.randint(0, 10, (2, 8)),)) == "ids is a int64 tensor of shape (2, 8)"


class OneSize(nn.Module):
    """Refuses all images but those of 16×16: by a shape that does not fit, or by a sentence."""

    def __init__(self, says: bool) -> None:
        super().__init__()
        self.embed, self.places, self.says = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(8, 4, 4)), says

    def forward(self, x):
        if self.says and x.shape[-1] != 16:
            raise ValueError(f"Input width ({x.shape[-1]}) doesn't match model (16)")
        return self.embed(x) + self.places


@pytest.mark.parametrize(
    "model", [OneSize(False), OneSize(True), nn.Sequential(nn.Flatten(), nn.Linear(768, 4))]
)
def test_a_size_that_the_model_itself_refuses_is_not_told(model):
    assert trace(model, Inputs((torch.randn(2, 3, 16, 16),))).notes == ()


def test_a_size_that_only_the_trace_refuses_is_told_in_a_sentence(monkeypatch):
    model, run = nn.Conv2d(3, 4, 3), Workshop.run

    def failing(self, inputs, *args, **kwargs):
        found = run(self, inputs, *args, **kwargs)
        if inputs.args[0].shape[-1] != 16:
            found.error, found.error_line = RuntimeError("Attempting to broadcast …"), "net.py:7"
        return found

    monkeypatch.setattr(Workshop, "run", failing)
    (note,) = trace(nn.Sequential(model), Inputs((torch.randn(2, 3, 16, 16),))).notes
    assert (note.topic, note.message) == ("frozen", "image size 16×16: the trace fails at another one")
    assert note.source == "net.py:7"


def test_a_model_that_fails_is_told_with_its_line():
    class Broken(nn.Module):
        def forward(self, x):
            return x.view(7, 7, 7)

    with pytest.raises(
        CaptureError, match=r"Broken fails on the example inputs: RuntimeError: shape"
    ) as error:
        trace(Broken(), images())
    assert error.value.where.rsplit(":", 1)[0].endswith("test_trace.py")
    assert "inputs" in error.value.remedy


def test_batch_norm_on_one_example_says_what_to_do():
    with pytest.raises(CaptureError) as error:
        trace(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), Inputs((torch.randn(1, 4),)))
    assert "batch of at least 2" in error.value.remedy


def test_lazy_layers_are_told():
    with pytest.raises(CaptureError, match="lazy layers"):
        trace(nn.Sequential(nn.LazyLinear(4)), Inputs((torch.randn(2, 4),)))


def test_hooks_find_the_layers_in_the_order_of_execution():
    model = Net()
    found = by_hooks(model, images(), "the trace was refused")
    assert [call.id for call in found.calls] == [
        "stem", "blocks.0.qkv", "blocks.0.out", "blocks.1.qkv", "blocks.1.out",
    ]  # fmt: skip
    assert found.rung == "modules"
    assert not found.forwards
    assert [(edge.source, edge.target) for edge in found.edges][:2] == [
        ("stem", "blocks.0.qkv"),
        ("blocks.0.qkv", "blocks.0.out"),
    ]
    assert found.notes[0].message == "the trace was refused"
    assert not any(module._forward_hooks for module in model.modules())
