"""One file per family of operations. See `_base.py` and CONTRIBUTING.md for adding one."""

from ._base import (
    Bilinear,
    Call,
    Kind,
    OneProduct,
    Operand,
    Operation,
    ProductRunner,
    Refusal,
    kind,
    kinds,
    recognise,
)
from ._bilinear import AxisBilinear, Contraction, Pairs

__all__ = [
    "AxisBilinear",
    "Bilinear",
    "Call",
    "Contraction",
    "Kind",
    "OneProduct",
    "Operand",
    "Operation",
    "Pairs",
    "ProductRunner",
    "Refusal",
    "kind",
    "kinds",
    "recognise",
]
