"""A config's parts: which model, which trainer, with which of the config's values."""

import math

from llgae_cli.config import Config
from llgae_cli.errors import InputError
from llgae_cli.models import LLGAE, Model
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, Gradient, Trainer

ALPHA = {"uniform": 0.0, "gaussian": 1.0}


def build_model(config: Config, shape: tuple[int, ...]) -> Model:
    """The model a config describes, for samples of a shape; its parameters are not set yet."""
    return MODELS[config.model](config, shape)


def build_trainer(config: Config, model: Model, samples: Samples) -> Trainer:
    """The trainer a config describes."""
    if config.trainer == "closed-form":
        if ALPHA[config.prior] * config.beta >= 1:
            raise InputError(f"beta: {config.beta} with prior gaussian; the closed-form trainer needs beta below 1")
        return closed_form(config, model, samples)
    return Gradient(
        model,
        samples,
        seed=config.seed,
        optimizer=config.optimizer,
        lr=config.lr,
        batch_size=config.batch_size,
    )


def closed_form(config: Config, model: Model, samples: Samples) -> ClosedForm:
    """The closed-form trainer for a model that is an LLGAE."""
    assert isinstance(model, LLGAE)
    return ClosedForm(
        model,
        samples,
        seed=config.seed,
        restarts=config.restarts,
        moves=config.moves,
        tol=config.tol,
        candidates=config.candidates,
        shrinkage=config.shrinkage,
    )


def llgae(config: Config, shape: tuple[int, ...]) -> LLGAE:
    """K affine subspaces; `pca` and `kmeans` are this with K = 1 and with E = 0."""
    return LLGAE(
        config.K,
        math.prod(shape),
        config.embed_dim,
        beta=config.beta,
        n_step=config.n_step,
        alpha=ALPHA[config.prior],
        inference=config.inference,
    )


MODELS = {"llgae": llgae, "pca": llgae, "kmeans": llgae}
