"""The contract suites, for kinds and policies of anybody's."""

from .kinds import check_kind
from .policies import check_policy

__all__ = ["check_kind", "check_policy"]
