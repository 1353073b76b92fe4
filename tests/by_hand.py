"""Sites built by hand, for tests of what needs no model."""

from __future__ import annotations

from typing import Any

from fxapprox.sites import Product, Site


def site(
    site_id: str = "fc",
    *,
    kind: str = "linear",
    pairs: tuple[int, int, int] = (64, 32, 16),
    depth: int = 0,
    height: int = 0,
    weight: bool = True,
    flops: tuple[int, int, int] = (100, 100, 100),
    **facts: Any,
) -> Site:
    """A site whose forward, grad_input and grad_weight hold `pairs` pairs."""
    over = ("in features", "out features", "batch")
    names = ("forward", "grad_input", "grad_weight")
    values: dict[str, Any] = {
        "owner": site_id,
        "op": {"linear": "Linear", "conv2d": "Conv2d"}.get(kind, kind),
        "call": None,
        "part": "",
        "input_shape": (pairs[2], pairs[0]),
        "weight_shape": (pairs[1], pairs[0]),
        "output_shape": (pairs[2], pairs[1]),
        "dtype": "float32",
        "weight": f"{site_id}.weight" if weight else None,
        **facts,
    }
    products = {name: Product(n, 1, f, o) for name, n, f, o in zip(names, pairs, flops, over, strict=True)}
    return Site(id=site_id, kind=kind, products=products, depth=depth, height=height, **values)  # type: ignore[arg-type]


def chain(length: int, **facts: Any) -> list[Site]:
    """`length` sites in a row, `layers.0` first, each reading the one before."""
    return [
        site(
            f"layers.{i}",
            depth=i,
            height=length - 1 - i,
            after=(f"layers.{i - 1}",) if i else (),
            **facts,
        )
        for i in range(length)
    ]
