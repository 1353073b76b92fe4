"""How long an example takes says nothing on a shared machine: hypothesis is not to judge it."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("fxapprox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fxapprox")
