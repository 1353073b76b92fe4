"""What emitted files call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxapprox.emit.runtime import FunctionCall, apply_plan, load_weights, matching
from fxapprox.errors import RequestError
from fxapprox.passes.layers import FunctionSite, Sampled

HALF = {"policy": "topk", "keep": 0.5}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.sdpa_1 = FunctionCall(nn.functional.scaled_dot_product_attention)
        self.matmul_1 = FunctionCall(torch.matmul)
        self.register_buffer("scale", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.matmul_1(x, x.T)


def test_a_plan_reaches_layers_calls_and_their_parts() -> None:
    net = apply_plan(Net(), {"layers.*": HALF, "matmul_1": HALF, "sdpa_1.scores": HALF})
    assert all(isinstance(layer, Sampled) for layer in net.layers)
    assert isinstance(net.matmul_1, FunctionSite)
    assert list(net.sdpa_1._fxapprox.parts) == ["scores"]
    assert net.sdpa_1._fxapprox.parts["scores"].stream.site == "sdpa_1.scores"


@pytest.mark.parametrize("site", ["layers.7", "layer.*", "matmul_2", "sdpa_2.scores", "layers.0.x"])
def test_an_unknown_site_is_an_error(site: str) -> None:
    with pytest.raises(RequestError, match="has no site"):
        apply_plan(Net(), {site: HALF})


def test_a_star_is_a_number() -> None:
    ids = ["a.0.b", "a.10.b", "a.x.b", "a.0.1.b", "b.0.b"]
    assert matching("a.*.b", ids) == ["a.0.b", "a.10.b"]
    assert matching("a.x.b", ids) == ["a.x.b"]


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    net, file = Net(), tmp_path / "w.safetensors"
    good = dict(net.state_dict()) | {"constant:scale": torch.full((2,), 3.0)}
    save_file(good, str(file))
    assert float(load_weights(Net(), file).scale[0]) == 3.0
    fresh = Net()
    before = fresh.layers[0].weight.clone()
    load_weights(fresh, file, all=False)
    assert torch.equal(fresh.layers[0].weight, before)
    assert float(fresh.scale[0]) == 3.0
    for wrong, message in (
        ({"odd": torch.ones(1)}, "holds odd, which the model does not have"),
        ({"layers.0.bias": torch.ones(3)}, r"layers.0.bias is torch.float32 \[3\]"),
        ({"layers.0.bias": torch.ones(4, dtype=torch.float64)}, "layers.0.bias is torch.float64"),
    ):
        save_file(good | wrong, str(file))
        with pytest.raises(RequestError, match=message):
            load_weights(Net(), file)
    save_file({name: value for name, value in good.items() if name != "layers.0.bias"}, str(file))
    with pytest.raises(RequestError, match=r"lacks 1 tensors of the model: layers\.0\.bias"):
        load_weights(Net(), file)
    with pytest.raises(RequestError, match="there is no file"):
        load_weights(Net(), tmp_path / "gone.safetensors")
