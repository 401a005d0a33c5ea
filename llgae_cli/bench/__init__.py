"""Benchmarks: times as ratios to other methods on one machine in one run, and rate-distortion curves."""

from llgae_cli.bench.benchmarks import BENCHES, COMPARISONS, run_benches
from llgae_cli.bench.row import Coding, Row

__all__ = ["BENCHES", "COMPARISONS", "Coding", "Row", "run_benches"]
