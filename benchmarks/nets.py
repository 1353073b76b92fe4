"""The nets whose training steps are timed, each by the factor of its width, and the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import fxapprox
from examples.mlp import MLP
from examples.resnet import ResNet
from examples.transformer import Transformer
from fxapprox import Plan, Rule

from .turns import Rival

RATE = 1e-8
"""So small that no weight runs away over a thousand steps on the same batch: a step costs the same."""
FORMS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with batch norm; the 3×3 strides."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNet-50 for 224×224 (He et al. 2015, with the stride on the 3×3)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            inner = width * 2**stage
            layers.append(Bottleneck(inputs, inner, 2 if stage and not block else 1))
            inputs = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


@dataclass(frozen=True)
class Net:
    """A net and a batch for it. `build(factor)` is the net with its width times the factor; `sampled` are the
    rewrites that are timed beside the exact net: rules, by the contender's name."""

    name: str
    title: str
    build: Callable[[float], nn.Module]
    inputs: Callable[[], Tensor]
    classes: int
    targets: tuple[int, ...]  # shape of the batch's labels
    sampled: Mapping[str, Sequence[Rule]] = field(default_factory=dict)
    momentum: float = 0.9

    def batch(self, form: str | None) -> tuple[Tensor, Tensor]:
        """Inputs in this memory format, and labels."""
        torch.manual_seed(0)
        x = self.inputs()
        labels = torch.randint(0, self.classes, self.targets)
        return (x.to(memory_format=FORMS[form]) if form else x), labels

    def model(self, form: str | None, factor: float = 1.0) -> nn.Module:
        torch.manual_seed(0)
        model = self.build(factor).train()
        return model.to(memory_format=FORMS[form]) if form else model

    @property
    def forms(self) -> list[str | None]:
        """The memory formats to try: two where the net has planes."""
        planes = any(isinstance(module, nn.Conv2d) for module in self.build(1.0).modules())
        return list(FORMS) if planes else [None]


def sampling(keep: float, *, policy: str = "topk", scope: str = "forward", stem: bool = True) -> list[Rule]:
    """Every site by the policy; `stem` leaves the first exact."""
    first = [Rule(depth="0", policy="exact")] if stem else []
    return [*first, Rule(policy=policy, keep=keep, scope=scope)]


def times(width: int, factor: float, of: int = 1) -> int:
    """A width times a factor, a multiple of `of`."""
    return max(round(width * factor / of), 1) * of


WRN = Net(
    "wrn", "ResNet on 32×32, widths 64–128–256, batch norm, batch 64",
    lambda factor: ResNet(times(64, factor)), lambda: torch.randn(64, 3, 32, 32), 10, (64,),
    {"topk-0.5": sampling(0.5), "topk-0.25": sampling(0.25)},
)  # fmt: skip
RESNET50 = Net(
    "resnet50", "ResNet-50 at 224×224, batch 8",
    lambda factor: resnet50(times(64, factor)), lambda: torch.randn(8, 3, 224, 224), 1000, (8,),
    {"topk-0.5": sampling(0.5)},
)  # fmt: skip
TRANSFORMER = Net(
    "transformer", "transformer of 6 layers, width 512, 128 tokens, batch 16",
    lambda factor: Transformer(width=times(512, factor, 8), layers=6, heads=8),
    lambda: torch.randint(0, 256, (16, 128)), 256, (16 * 128,),
    {"topk-0.5": sampling(0.5, stem=False)},
)  # fmt: skip
SEED_MLP = Net(
    "mlp", "MLP 784–1000–1000–1000–10, batch 20, scope backward",
    lambda factor: MLP(times(1000, factor)), lambda: torch.randn(20, 784), 10, (20,),
    {f"{one}-0.1": sampling(0.1, policy=one, scope="backward", stem=False) for one in ("topk", "bernoulli")},
    momentum=0.0,
)  # fmt: skip
NETS = [WRN, RESNET50, TRANSFORMER, SEED_MLP]


def rewritten(net: Net, name: str, form: str | None) -> nn.Module:
    """The net with every site sampled by the rules of this name."""
    two = net.batch(form)[0][:2]
    return fxapprox.rewrite(net.model(form), (two,), rules=net.sampled[name], gate=False)


def gated(net: Net, name: str, form: str | None) -> tuple[nn.Module, Plan]:
    """The same where sampling is faster on the whole batch; the exact net where that is nowhere."""
    model, (x, _) = net.model(form), net.batch(form)
    plan = fxapprox.plan(model, (x,), rules=net.sampled[name], gate=True)
    return (fxapprox.rewrite(model, (x[:2],), rules=plan) if plan.rewritten else model), plan


def training_step(
    net: Net,
    model: nn.Module,
    form: str | None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Rival:
    """`zero_grad`, forward, cross entropy, backward and SGD's step; forward and loss within `around`."""
    x, labels = net.batch(form)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=net.momentum)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with around():
            loss = nn.functional.cross_entropy(model(x).flatten(0, -2), labels)
        loss.backward()
        optimizer.step()

    return Rival(step, lead=1)
