"""The family: each model has encode(x) -> code, decode(code) -> x_hat and loss(x) -> mean L2."""

from llgae_cli.models.contract import Code, Model
from llgae_cli.models.llgae import LLGAE

__all__ = ["LLGAE", "Code", "Model"]
