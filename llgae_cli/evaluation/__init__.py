"""Evaluation of trained models. Figures, reports and tables are made of `Evaluated`."""

from llgae_cli.evaluation.encoding import Encoded, encode
from llgae_cli.evaluation.evaluated import Evaluated, evaluate_checkpoint, evaluate_checkpoints, name_models
from llgae_cli.evaluation.latents import Latents
from llgae_cli.evaluation.metrics import Metrics, keep_held, mean_l2, mean_l2_alone, measure

__all__ = [
    "Encoded",
    "Evaluated",
    "Latents",
    "Metrics",
    "encode",
    "evaluate_checkpoint",
    "evaluate_checkpoints",
    "keep_held",
    "mean_l2",
    "mean_l2_alone",
    "measure",
    "name_models",
]
