"""Benchmarks: times as ratios to other methods on one machine in one run, and rate-distortion curves."""

from llgae_cli.bench.benchmarks import BENCHES, COMPARISONS, ON_OWN_DATA, run_benches
from llgae_cli.bench.row import Coding, Row

__all__ = ["BENCHES", "COMPARISONS", "ON_OWN_DATA", "Coding", "Row", "run_benches"]
