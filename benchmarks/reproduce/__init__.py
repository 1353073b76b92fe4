"""The experiments behind docs/evidence.md: one file each, found by itself.

python -m benchmarks.reproduce
"""
