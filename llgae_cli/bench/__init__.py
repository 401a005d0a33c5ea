"""Speed, as ratios in one run on one machine: against its own matrix product, the plain loop, the peers."""

from llgae_cli.bench.benchmarks import BENCHES, Row, run_benches

__all__ = ["BENCHES", "Row", "run_benches"]
