"""Benchmarks: times as ratios, on one machine in one run, to its matrix product, the plain loop, and scikit-learn."""

from llgae_cli.bench.benchmarks import BENCHES, Row, run_benches

__all__ = ["BENCHES", "Row", "run_benches"]
