"""Train PyTorch models with sampled matrix products and convolutions.

fast = fxapprox.rewrite(model, (x,), policy="topk", keep=0.5)
"""

from . import emit as _emit  # noqa: F401  (before the names below: a module's name may also be a function's)
from . import kinds, policies
from .api import plan, rewrite, summary
from .errors import FxApproxError, NothingRewritten
from .plan import Plan
from .rules import Rule

__all__ = [
    "FxApproxError",
    "NothingRewritten",
    "Plan",
    "Rule",
    "kinds",
    "plan",
    "policies",
    "rewrite",
    "summary",
]
__version__ = "0.1.0"
