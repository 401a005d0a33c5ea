"""The family: each model has encode(x) -> code, decode(code) -> x_hat and loss(x) -> mean L2."""

from llgae_cli.models.llgae import LLGAE, Code

MODELS = {"llgae": LLGAE}

__all__ = ["LLGAE", "MODELS", "Code"]
