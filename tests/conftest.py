"""Time says nothing on a shared machine: neither hypothesis nor the gate is to judge by it here."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("fxapprox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fxapprox")
# tests of sampling rewrite layers that are too small to gain; those of the gate ask for it by name
os.environ.setdefault("FXAPPROX_GATE", "0")
