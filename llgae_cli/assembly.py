"""A config's parts: which model, which trainer, with which of the config's values."""

import math
from collections.abc import Callable
from typing import Any

from llgae_cli.config import Config
from llgae_cli.errors import InputError
from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Autoencoder, Decoder, Model, Residual, Shift, SoftLLGAE
from llgae_cli.tasks import Samples
from llgae_cli.training import ClosedForm, Gradient, Levels, Trainer, moved_back

ALPHA = {"uniform": 0.0, "gaussian": 1.0}


def build_model(config: Config, shape: tuple[int, ...]) -> Model:
    """The model a config describes, for samples of a shape; its parameters are not set yet."""
    return MODELS[config.model](config, shape)


def build_trainer(config: Config, model: Model, samples: Samples, shape: tuple[int, ...]) -> Trainer:
    """The trainer a config describes, for samples of a shape."""
    begins = config.begins_in_closed_form
    if (begins or config.trainer == "closed-form") and ALPHA[config.prior] * config.beta >= 1:
        raise InputError(f"beta: {config.beta} with prior gaussian; the closed-form trainer needs beta below 1")
    if config.flip and len(shape) < 2:
        raise InputError(f"flip: samples of {shape[0]} values are no images")
    if config.trainer == "closed-form":
        return IN_CLOSED_FORM[config.model](config, model, samples)
    return Gradient(
        model,
        samples,
        seed=config.seed,
        optimizer=config.optimizer,
        lr=config.lr,
        batch_size=config.batch_size,
        affine=closed_form(config, llgae(config, (samples.D,)).to(samples.device), samples) if begins else None,
        one_cycle=config.epochs if config.schedule == "one-cycle" else 0,
        weight_decay=config.weight_decay,
        average=config.average,
        mirrored=shape if config.flip else None,
        noise=config.noise if config.model == "denoising-autoencoder" else 0.0,
    )


def closed_form(config: Config, model: LLGAE, samples: Samples) -> ClosedForm:
    """The closed-form trainer for a model that is an LLGAE."""
    return ClosedForm(model, samples, candidates=config.candidates, **_fitted(config))


def levels(config: Config, model: Residual, samples: Samples) -> Levels:
    """The closed-form trainer for a residual model."""
    _scores_all(config)
    return Levels(model, samples, **_fitted(config))


def shifted(config: Config, model: Shift, samples: Samples) -> ClosedForm:
    """The closed-form trainer for a model with shifts: LLGAE's, on samples moved back."""
    _scores_all(config)
    return ClosedForm(model.affine, samples, view=moved_back(model), **_fitted(config))


def _fitted(config: Config) -> dict[str, Any]:
    """What every closed-form trainer is told."""
    return {
        "seed": config.seed,
        "restarts": config.restarts,
        "moves": config.moves,
        "tol": config.tol,
        "shrinkage": config.shrinkage,
    }


def _scores_all(config: Config) -> None:
    if config.candidates not in ("auto", "off"):
        raise InputError(f"candidates: {config.candidates} with model {config.model}, which scores every component")


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


def soft_llgae(config: Config, shape: tuple[int, ...]) -> SoftLLGAE:
    """K affine subspaces that blend into each other."""
    return SoftLLGAE(
        config.K,
        math.prod(shape),
        config.embed_dim,
        tau=config.tau,
        gate_dim=config.gate_dim if config.gates == "embedding" else 0,
        beta=config.beta,
        n_step=config.n_step,
        alpha=ALPHA[config.prior],
        inference=config.inference,
    )


def gae(config: Config, shape: tuple[int, ...]) -> GAE:
    """A decoder network, beside the affine pieces in `deep-llgae`, and ascent through it."""
    K, D, E = config.K, math.prod(shape), config.embed_dim
    alone = config.decoder == "linear"
    network = None if alone else DECODERS[config.decoder](K, E, shape, config.width, config.channels)
    pieces = LLGAE(K, D, E) if alone or config.model == "deep-llgae" else None
    guided = config.latent_start == "learnt"
    encoder = ENCODERS["mlp" if alone else config.decoder]
    return GAE(
        Decoder(pieces, network),
        K,
        D,
        E,
        beta=config.beta,
        n_step=config.n_step,
        alpha=ALPHA[config.prior],
        ascent=config.ascent,
        lower_precision=config.precision == "bfloat16",
        affine=None if config.latent_start == "zero" else LLGAE(K, D, E, inference="least-squares"),
        guide=encoder(K, E, shape, config.width, config.channels) if guided else None,
    )


def residual(config: Config, shape: tuple[int, ...]) -> Residual:
    """Levels of affine subspaces, one of each added up."""
    return Residual([llgae(config, shape) for _ in range(config.levels)], config.sweeps)


def shift(config: Config, shape: tuple[int, ...]) -> Shift:
    """Affine subspaces of images, and where in the image they are drawn."""
    if len(shape) < 2:
        raise InputError(f"model shift: needs images (H, W) or (H, W, 3); these are samples of {shape[0]} values")
    if 2 * config.window + 1 > min(shape[:2]):
        raise InputError(f"window: {config.window} moves further than images of {shape[0]} x {shape[1]} are wide")
    return Shift(llgae(config, shape), shape, config.window)


def autoencoder(config: Config, shape: tuple[int, ...]) -> Autoencoder:
    """An encoder and a decoder network of the same kind."""
    if config.decoder == "linear":
        raise InputError("decoder: linear with an autoencoder, which is then PCA; model: pca is that, solved exactly")
    sizes = (1, config.embed_dim, shape, config.width, config.channels)
    encoder, decoder = ENCODERS[config.decoder](*sizes), DECODERS[config.decoder](*sizes)
    return Autoencoder(encoder, decoder, math.prod(shape), config.embed_dim, config.precision == "bfloat16")


MODELS = {
    "llgae": llgae,
    "pca": llgae,
    "kmeans": llgae,
    "soft-llgae": soft_llgae,
    "gae": gae,
    "deep-llgae": gae,
    "residual": residual,
    "shift": shift,
    "autoencoder": autoencoder,
    "denoising-autoencoder": autoencoder,
}

IN_CLOSED_FORM: dict[str, Callable[..., Trainer]] = {
    "llgae": closed_form,
    "pca": closed_form,
    "kmeans": closed_form,
    "residual": levels,
    "shift": shifted,
}
