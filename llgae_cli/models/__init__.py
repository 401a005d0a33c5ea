"""The models; each has encode(x) -> code, decode(code) -> x_hat and loss(x) -> mean L2."""

from llgae_cli.models.autoencoder import Autoencoder
from llgae_cli.models.base import Code, Model, Parts
from llgae_cli.models.gae import GAE, Decoder
from llgae_cli.models.latent_rate import LatentRate
from llgae_cli.models.llgae import LLGAE
from llgae_cli.models.networks import DECODERS, ENCODERS
from llgae_cli.models.residual import Residual
from llgae_cli.models.shift import Shift
from llgae_cli.models.soft_llgae import SoftLLGAE

__all__ = [
    "DECODERS",
    "ENCODERS",
    "GAE",
    "LLGAE",
    "Autoencoder",
    "Code",
    "Decoder",
    "LatentRate",
    "Model",
    "Parts",
    "Residual",
    "Shift",
    "SoftLLGAE",
]
