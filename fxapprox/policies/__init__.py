"""One file per policy. See `_base.py` for what a policy is and CONTRIBUTING.md for adding one."""

from ._base import Policy, Selection, Stream, policies, policy

__all__ = ["Policy", "Selection", "Stream", "policies", "policy"]
