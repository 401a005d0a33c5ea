"""Evaluation of trained models. Figures, reports and tables are made of `Evaluated`."""

from llgae_cli.evaluation.encoding import Encoded, encode
from llgae_cli.evaluation.evaluated import Evaluated, evaluate_checkpoint, evaluate_checkpoints, name_models
from llgae_cli.evaluation.latents import Latents
from llgae_cli.evaluation.metrics import Metrics, mean_l2, measure

__all__ = [
    "Encoded",
    "Evaluated",
    "Latents",
    "Metrics",
    "encode",
    "evaluate_checkpoint",
    "evaluate_checkpoints",
    "mean_l2",
    "measure",
    "name_models",
]
