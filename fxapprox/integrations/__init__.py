"""Callbacks for training frameworks: one file each, which alone imports the framework.

`fxapprox.integrations.lightning` needs the extra `lightning`, `fxapprox.integrations.huggingface` the
extra `huggingface`. A loop of your own needs neither: docs/training.md."""
