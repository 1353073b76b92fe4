"""One file per family of operations. See `_base.py` and CONTRIBUTING.md for adding one."""

from ._base import Bilinear, Call, Kind, OneProduct, Operation, Refusal, kind, kinds, recognise

__all__ = ["Bilinear", "Call", "Kind", "OneProduct", "Operation", "Refusal", "kind", "kinds", "recognise"]
