"""Train PyTorch models with sampled matrix products and convolutions.

fast = fxapprox.rewrite(model, (x,), policy="topk", keep=0.5)
"""

# `plan` and `emit` are functions here and modules, too: `from fxapprox.plan import Plan` finds the module
from . import kinds, policies
from .api import plan, rewrite, summary
from .emit import emit
from .errors import FxApproxError, NothingRewritten
from .passes.batchnorm import batchnorm_reestimated, reestimate_batchnorm
from .plan import Plan
from .recipes import recipe
from .rules import Rule
from .run import attach, load_run_state, run_state

__all__ = [
    "FxApproxError",
    "NothingRewritten",
    "Plan",
    "Rule",
    "attach",
    "batchnorm_reestimated",
    "emit",
    "kinds",
    "load_run_state",
    "plan",
    "policies",
    "recipe",
    "reestimate_batchnorm",
    "rewrite",
    "run_state",
    "summary",
]
__version__ = "0.1.0"
