"""Build the model and the trainer that a config describes, and restore a model from a checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from llgae_cli import storage
from llgae_cli.config import Config, parse_config
from llgae_cli.errors import InputError, LlgaeError, printable
from llgae_cli.models import DECODERS, ENCODERS, GAE, LLGAE, Autoencoder, Decoder, Model, Residual, Shift, SoftLLGAE
from llgae_cli.storage import Checkpoint
from llgae_cli.tasks import Samples
from llgae_cli.threads import limit_threads
from llgae_cli.training import ClosedForm, Gradient, Levels, Trainer, moved_back

CERTAIN = 4096  # a size up to this is built and looked at, whatever the tensors
BEYOND = 1e34  # mean L2 of the largest values that a task takes stays below
ALPHA = {"uniform": 0.0, "gaussian": 1.0}


def set_up_torch(config: Config) -> None:
    """Set threads and seed, and full float32 precision wherever a device would round products to fewer bits."""
    limit_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("highest")


def choose_device(name: str) -> torch.device:
    """Return the device a config names; InputError when this machine or this build of torch lacks it."""
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if not available.get(name):
        here = ", ".join(kind for kind, present in available.items() if present)
        raise InputError(f"device: {printable(name)} is not available on this machine; available: {here}")
    return torch.device(name)


def check_fit(config: Config, N: int, D: int) -> None:
    """Raise InputError where K, embed-dim or validation do not fit N training samples of D values."""
    held_out = round(N * config.validation)
    if config.validation and held_out == 0:
        raise InputError(f"validation: {config.validation:g} of {N} training samples is less than one")
    if N - held_out < config.K:
        raise InputError(f"K: {config.K} components for {N - held_out} training samples; K is at most their number")
    if config.embed_dim > D:
        raise InputError(f"embed-dim: {config.embed_dim} is more than the {D} values of a sample")


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


def restore(path: Path) -> tuple[Model, Checkpoint, Config]:
    """The model in a checkpoint, ready to encode and decode; InputError where the file is not sound."""
    checkpoint = storage.load(path)
    try:
        config = parse_config(checkpoint.config)
        shape = tuple(int(side) for side in checkpoint.data["shape"])
        check_sizes(config, checkpoint)
        # Sizes alone: what a config claims takes no memory before the tensors bear it out.
        with torch.device("meta"), _Undrawn():
            claimed = build_model(config, shape)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, LlgaeError) as error:
        reason = printable(error, 200)
        raise InputError(f"{printable(path.name, 200)}: its config does not make a model ({reason})") from None
    check_state(claimed, checkpoint, path)
    check_history(checkpoint, path)
    model = build_model(config, shape)
    load_state(model, checkpoint, path)
    return model, checkpoint, config


def shape_of(checkpoint: Checkpoint, model: Model) -> tuple[int, ...]:
    """Return the shape of a sample as the checkpoint says; (D,) where that does not make D values."""
    shape = checkpoint.data.get("shape")
    if not isinstance(shape, list) or not all(isinstance(side, int) and side > 0 for side in shape):
        return (model.D,)
    fits = math.prod(shape) == model.D and (len(shape) <= 2 or (len(shape) == 3 and shape[2] == 3))
    return tuple(shape) if fits else (model.D,)


def load_state(model: Model, checkpoint: Checkpoint, path: Path) -> None:
    """Put a checkpoint's tensors into a model; InputError when names, shapes or types do not fit its own config."""
    check_state(model, checkpoint, path)
    model.load_state_dict(checkpoint.state)
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise InputError(f"{printable(path.name, 200)}: its tensors hold numbers beyond the model's precision")


def check_sizes(config: Config, checkpoint: Checkpoint) -> None:
    """Raise InputError for a size that the tensors are too few for: modules are built one by one, in no time or never.

    Sizes up to CERTAIN pass: some are of no meaning for the config's model and stand at their default.
    """
    most = max(CERTAIN, sum(tensor.numel() for tensor in checkpoint.state.values()))
    for key in ("K", "embed_dim", "levels", "width", "channels", "gate_dim", "window"):
        if getattr(config, key, 0) > most:
            raise InputError(f"{key.replace('_', '-')}: {getattr(config, key)} for a model of at most {most} numbers")


def check_state(model: Model, checkpoint: Checkpoint, path: Path) -> None:
    """Raise InputError where a checkpoint's tensors are not those of the model, by name, shape and kind of number."""
    own, found = model.state_dict(), checkpoint.state
    unequal = own.keys() ^ found.keys()
    wrong = f"it lacks or adds {sorted(unequal)[0]}" if unequal else ""
    for name in own if not wrong else ():
        mine, given = own[name], found[name]
        if mine.shape != given.shape:
            wrong = f"{name} is {tuple(given.shape)}, not {tuple(mine.shape)}"
        elif mine.dtype != given.dtype and not (mine.is_floating_point() and given.is_floating_point()):
            wrong = f"{name} holds {given.dtype}, not {mine.dtype}"
    if wrong:
        raise InputError(f"{printable(path.name, 200)}: its tensors do not fit its config ({printable(wrong, 200)})")


def check_history(checkpoint: Checkpoint, path: Path) -> None:
    """Raise InputError where a checkpoint's history or data say what no run writes: figures and resuming rely on it."""
    peak = checkpoint.data.get("peak", 255.0)
    wrong = ""
    if not all({"epoch", "seconds"} <= row.keys() for row in checkpoint.history):
        wrong = "a row of its history lacks epoch or seconds"
    elif not all(abs(number) < BEYOND for row in checkpoint.history for number in row.values()):
        wrong = "its history holds numbers that no run comes to"
    elif not isinstance(peak, (int, float)) or not 0 < peak < BEYOND:
        wrong = f"its peak is {printable(peak)}, not a number above 0"
    if wrong:
        raise InputError(f"{printable(path.name, 200)}: {wrong}")


class _Undrawn(TorchFunctionMode):
    """No random numbers for tensors that have none: torch would import its compiler for them, which takes 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.init.normal_, torch.nn.init.uniform_, torch.nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
