"""Time says nothing on a shared machine: neither hypothesis nor the gate is to judge by it here."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

settings.register_profile("fxapprox", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fxapprox")
# tests of sampling rewrite layers that are too small to gain; those of the gate ask for it by name
os.environ.setdefault("FXAPPROX_GATE", "0")
# the same on every machine: the tests of the fused kernels build and use their own
os.environ["FXAPPROX_NATIVE"] = "0"
# sums are the same to the bit only on as many threads; processes that tests start have one, too
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
