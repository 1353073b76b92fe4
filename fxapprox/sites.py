"""Sites: the contractions of a model, as facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

ProductName = Literal["forward", "grad_input", "grad_weight"]
PRODUCTS: tuple[ProductName, ...] = ("forward", "grad_input", "grad_weight")


ROOT = "model"
"""The id of a model that is itself a layer, whose path is empty."""


def layer_id(path: str) -> str:
    """The id of the site that is the layer at `path`."""
    return path or ROOT


@dataclass(frozen=True)
class Product:
    """One of a site's three products: `groups` independent contractions over `pairs` column-row pairs.

    `flops` counts 2 per multiply-add, for all groups and all calls in one training step; 0 where the
    step does not compute the product (the input of a first layer needs no gradient)."""

    pairs: int
    groups: int
    flops: int
    over: str  # what is contracted, in words: "in features", "out channels", "batch"


@dataclass(frozen=True)
class Site:
    """One contraction of the user's model.

    `id` is the layer's path (`ROOT` where the model is the layer), or that of the owner and a counted name.
    `owner` is the path of the module that runs it: the layer itself for a module site (`call` is
    None), else the module in whose forward the function call number `call` (from 1, per function
    name) stands. `refusal` says why a site can never be sampled, None where it can."""

    id: str
    kind: str
    owner: str
    op: str  # as a person would call it: "Linear", "matmul"
    call: int | None
    part: str  # which product of a call that holds several ("scores", "values"); "" for most
    products: Mapping[ProductName, Product]
    input_shape: tuple[int, ...]  # of the left operand
    weight_shape: tuple[int, ...]  # of the right operand
    output_shape: tuple[int, ...]
    dtype: str
    depth: int  # sites on the longest path from an input, 0 for the first
    height: int  # sites on the longest path to an output, 0 for the last
    weight: str | None = None  # name of the parameter, None where the right operand is an activation
    shared: bool = False  # the weight serves another site, too
    calls: int = 1  # how often one forward runs it
    source: str | None = None  # "file.py:12" in the user's code
    refusal: str | None = None
    opt_in: bool = False  # sampled only where a rule names its kind
    after: tuple[str, ...] = field(default=())  # ids of the sites whose results reach it directly
    norm_after: str | None = None  # the batch-norm layer that reads its output, if any

    @property
    def channels(self) -> int:
        """Pairs of the forward product: what `min_channels` compares."""
        return self.products["forward"].pairs

    @property
    def flops(self) -> int:
        """FLOPs of the three products in one training step, 2 per multiply-add."""
        return sum(product.flops for product in self.products.values())
