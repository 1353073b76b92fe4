"""The Lightning callback, in real fits."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxapprox.errors import FxApproxError
from fxapprox.integrations.lightning import FxApproxCallback
from fxapprox.passes.layers import Sampled

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(12, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 3)
        )
        self.example_input_array = torch.randn(4, 12)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def data() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 12, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)


def fit(
    folder: Path, epochs: int, callback: FxApproxCallback, ckpt: str | None = None, more: Any = ()
) -> tuple[Net, Trainer]:
    seed_everything(0, verbose=False)
    module = Net()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
        default_root_dir=folder, enable_model_summary=False, callbacks=[callback, *more],
        num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(module, data(), data(), ckpt_path=ckpt)
    return module, trainer


def test_fit_trains_the_rewritten_child(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, trainer = fit(tmp_path, 2, FxApproxCallback(policy="pps", keep=0.5))
    assert isinstance(module.net[0], Sampled)
    assert isinstance(module.net[0], nn.Linear)
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.parameters()}
    seed_everything(0, verbose=False)
    assert not torch.equal(module.net[0].weight, Net().net[0].weight)


def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path: Path) -> None:
    # without dropout masks, which Lightning does not restore
    keys: dict[str, Any] = {"policy": "pps", "keep": 0.5, "batchnorm_batches": 0}
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, every_n_epochs=1)

    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net[3] = nn.Identity()

    def run(epochs: int, ckpt: str | None = None) -> Net:
        seed_everything(0, verbose=False)
        module = Plain()
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[FxApproxCallback(**keys), saver],
        )  # fmt: skip
        trainer.fit(module, data(), data(), ckpt_path=ckpt)
        return module

    whole = run(3)
    resumed = run(3, str(tmp_path / "epoch=1.ckpt"))
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_batch_norm_is_re_estimated_before_validation(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, 1, FxApproxCallback(policy="topk", keep=0.5))
    norm, linear = module.net[1], module.net[0]
    batches = [x for x, _ in data()]
    with torch.no_grad():
        exact = torch.stack([(x @ linear.weight.t() + linear.bias).mean(0) for x in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, exact, rtol=1e-4, atol=1e-5)


def test_batch_norm_is_left_alone_on_request(tmp_path: Path) -> None:
    module, _ = fit(tmp_path, 1, FxApproxCallback(policy="topk", keep=0.5, batchnorm_batches=0))
    assert module.net[1].num_batches_tracked == 3  # the training steps'


def test_evaluation_outside_fit_needs_no_inputs(tmp_path: Path) -> None:
    module = Net()
    module.example_input_array = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            callbacks=[FxApproxCallback(policy="topk")],
        )
        trainer.validate(module, data(), verbose=False)
    assert not isinstance(module.net[0], Sampled)


def test_a_second_fit_goes_on_with_the_same_model(tmp_path: Path) -> None:
    callback = FxApproxCallback(policy="topk")
    module, trainer = fit(tmp_path, 1, callback)
    net = module.net
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data(), data())
    assert module.net is net


class Two(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)


class Bare(Net):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = None


@pytest.mark.parametrize(
    ("make", "keys", "message"),
    [
        (Two, {}, "2 children with parameters: net, head"),
        (Bare, {}, "no example inputs for 'net'"),
        (Net, {"child": "nett"}, "no child 'nett'"),
        (Net, {"policy": "topkk"}, "unknown policy 'topkk'"),
    ],
)
def test_what_cannot_be_told_is_an_error(make: type[Net], keys: dict[str, Any], message: str) -> None:
    callback = FxApproxCallback(**{"policy": "topk", **keys})
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    with pytest.raises(FxApproxError, match=message):
        trainer.fit(make(), data())


@pytest.mark.parametrize("batches", [-1, 1.5, True])
def test_batches_must_be_a_number(batches: Any) -> None:
    with pytest.raises(FxApproxError, match="no number of batches"):
        FxApproxCallback(policy="topk", batchnorm_batches=batches)
