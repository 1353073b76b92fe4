"""What a rewrite buys, in seconds: whole training steps and single sites, exact against rewritten."""

from .bench import Bench, CallRow, StepRow, bench, check_request
from .calls import SampledCall, sampled_calls
from .sites import CallTimes, time_call
from .timing import Budget

__all__ = [
    "Bench",
    "Budget",
    "CallRow",
    "CallTimes",
    "SampledCall",
    "StepRow",
    "bench",
    "check_request",
    "sampled_calls",
    "time_call",
]
