"""One file per policy. See `_base.py` for what a policy is and CONTRIBUTING.md for adding one."""

from ._base import SCOPES, AnyPolicy, Policy, Scope, Selection, Stream, policies, policy
from ._nodes import Active, Gates, Layer, NodePolicy, node_policy

__all__ = [
    "SCOPES", "Active", "AnyPolicy", "Gates", "Layer", "NodePolicy", "Policy", "Scope", "Selection", "Stream",
    "node_policy", "policies", "policy",
]  # fmt: skip
