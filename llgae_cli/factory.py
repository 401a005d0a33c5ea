"""Build the model and the trainer that a config describes, and restore a model from a checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch.overrides import TorchFunctionMode

from llgae_cli import storage
from llgae_cli.config import Config, parse_config
from llgae_cli.errors import InputError, LlgaeError, printable
from llgae_cli.models import (
    DECODERS,
    ENCODERS,
    GAE,
    LLGAE,
    Autoencoder,
    Decoder,
    LatentRate,
    Model,
    Residual,
    Shift,
    SoftLLGAE,
)
from llgae_cli.scaling import Scaling, restore_scaling
from llgae_cli.storage import Checkpoint
from llgae_cli.tasks import Samples, TableOptions
from llgae_cli.tasks.scaling import Method
from llgae_cli.threads import limit_threads
from llgae_cli.training import ClosedForm, Gradient, RateClosedForm, ResidualClosedForm, Trainer, undo_shifts

ALWAYS_BUILT = 4096  # sizes up to this are built without comparing them with the tensors first
LARGEST = 1e34  # more than the mean L2 of the largest values that a task accepts
ALPHA = {"uniform": 0.0, "gaussian": 1.0}  # precision of the prior on b


def set_up_torch(config: Config) -> None:
    """Set threads and seed, and full float32 precision wherever a device would round products to fewer bits."""
    limit_threads(config.threads)
    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("highest")


class Loading(TypedDict):
    """Arguments of `load_task` and `load_samples` that say how rows are read and prepared."""

    centring: Any
    seed: int
    scaling: Any
    options: TableOptions


def describe_loading(config: Config, checkpoint: Checkpoint | None = None, other: bool = False) -> Loading:
    """Return how the data of a config is read and prepared.

    With a checkpoint the rows are prepared as its training rows were; with `other`, the data is not the checkpoint's
    own, and its columns are found by their names. Raises InputError for a damaged checkpoint.
    """
    centring, columns = config.centring, tuple(config.columns or ())
    scaling: Scaling | Method | None = config.scaling
    if checkpoint is not None:
        data = checkpoint.data
        found = data.get("centring", centring)
        centring = found if found in ("sample", "none") else "sample"  # earlier versions centred all data
        scaling = restore_scaling(data.get("scaling"), data.get("D", 0))
        columns = tuple(data.get("columns", ())) if other else columns
    own = config.shards == "own"
    options = TableOptions(columns, config.labels, config.test, config.missing, stored=other, own=own)
    return {"centring": centring, "seed": config.seed, "scaling": scaling, "options": options}


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
    left = N - held_out
    if config.rows is not None and config.rows > left:
        raise InputError(f"rows: {config.rows} of {left} training samples; rows is at most their number")
    if (config.rows or left) < config.K:
        raise InputError(
            f"K: {config.K} components for {config.rows or left} training samples; K is at most their number"
        )
    if config.embed_dim > D:
        raise InputError(f"embed-dim: {config.embed_dim} is more than the {D} values of a sample")


def build_model(config: Config, shape: tuple[int, ...]) -> Model:
    """Return the model that a config describes, for samples of a shape; its parameters are not initialised yet."""
    return MODELS[config.model](config, shape)


def build_trainer(config: Config, model: Model, samples: Samples, shape: tuple[int, ...]) -> Trainer:
    """Return the trainer that a config describes, for samples of a shape."""
    from_closed_form = config.begins_in_closed_form
    if (from_closed_form or config.trainer == "closed-form") and ALPHA[config.prior] * config.beta >= 1:
        raise InputError(f"beta: {config.beta} with prior gaussian; the closed-form trainer needs beta below 1")
    if config.flip and len(shape) < 2:
        raise InputError(f"flip: needs images; samples here have {shape[0]} values")
    if config.trainer == "closed-form":
        return CLOSED_FORM_TRAINERS[config.model](config, model, samples)
    for_rate = isinstance(model, GAE) and model.rate is not None
    if for_rate:
        _check_bits(config)
    return Gradient(
        model,
        samples,
        seed=config.seed,
        optimizer=config.optimizer,
        lr=config.lr,
        batch_size=config.batch_size,
        affine=_build_closed_form(config, _build_llgae(config, (samples.D,)).to(samples.device), samples)
        if from_closed_form
        else None,
        schedule=config.schedule,
        epochs=config.epochs,
        weight_decay=config.weight_decay,
        average=config.average,
        mirrored=shape if config.flip else None,
        noise=config.noise if config.model == "denoising-autoencoder" else 0.0,
        bits=config.bits if config.bits is not None and for_rate else 0.0,
    )


def _build_closed_form(config: Config, model: LLGAE, samples: Samples) -> ClosedForm:
    return ClosedForm(model, samples, candidates=config.candidates, **_common_options(config))


def _build_closed_form_affine(config: Config, model: LLGAE, samples: Samples) -> Trainer:
    if config.bits is None and config.step is None:
        return _build_closed_form(config, model, samples)
    _check_bits(config)
    return RateClosedForm(
        model,
        samples,
        seed=config.seed,
        bits=config.bits,
        step=config.step,
        tol=config.tol,
        shrinkage=config.shrinkage,
        leave_one_out=config.leave_one_out,
    )


def _build_closed_form_residual(config: Config, model: Residual, samples: Samples) -> ResidualClosedForm:
    _refuse_candidates(config)
    return ResidualClosedForm(model, samples, **_common_options(config))


def _build_closed_form_shift(config: Config, model: Shift, samples: Samples) -> ClosedForm:
    _refuse_candidates(config)
    return ClosedForm(model.affine, samples, target=undo_shifts(model), **_common_options(config))


def _check_bits(config: Config) -> None:
    """Raise InputError where the choice of one of K components may take more bits than the model is trained for."""
    if config.bits is not None and config.bits < math.log2(config.K):
        raise InputError(
            f"bits: {config.bits:g} with K {config.K}: the choice of a component alone may take "
            f"{math.log2(config.K):.3g} bits; K is at most 2^bits"
        )


def _common_options(config: Config) -> dict[str, Any]:
    return {
        "seed": config.seed,
        "restarts": config.restarts,
        "moves": config.moves,
        "tol": config.tol,
        "shrinkage": config.shrinkage,
    }


def _refuse_candidates(config: Config) -> None:
    if config.candidates not in ("auto", "off"):
        raise InputError(f"candidates: {config.candidates} with model {config.model}, which scores every component")


def _build_llgae(config: Config, shape: tuple[int, ...]) -> LLGAE:
    return LLGAE(
        config.K,
        math.prod(shape),
        config.embed_dim,
        inference=config.inference,
        near_zero=config.start == "near-zero",
        **_ascent(config),
    )


def _build_soft_llgae(config: Config, shape: tuple[int, ...]) -> SoftLLGAE:
    return SoftLLGAE(
        config.K,
        math.prod(shape),
        config.embed_dim,
        tau=config.tau,
        gate_dim=config.gate_dim if config.gates == "embedding" else 0,
        inference=config.inference,
        **_ascent(config),
    )


def _build_gae(config: Config, shape: tuple[int, ...]) -> GAE:
    K, D, E = config.K, math.prod(shape), config.embed_dim
    linear = config.decoder == "linear"
    sizes = (K, E, shape, config.width, config.channels)
    network = None if linear else DECODERS[config.decoder](*sizes)
    pieces = LLGAE(K, D, E) if linear or config.model == "deep-llgae" else None
    encoder = ENCODERS["mlp" if linear else config.decoder]
    staged = config.explain_unused("ascent-epochs") is None
    return GAE(
        Decoder(pieces, network),
        K,
        D,
        E,
        ascent=config.ascent,
        ascent_from=config.epochs - config.ascent_epochs if staged and config.ascent_epochs else 0,
        training_steps=config.ascent_steps if staged else None,
        tries=config.tries,
        method=config.ascent_method,
        tolerance=config.ascent_tol,
        lower_precision=config.precision == "bfloat16",
        affine=None if config.latent_start == "zero" else LLGAE(K, D, E, inference="least-squares"),
        guide=encoder(*sizes) if config.latent_start == "learnt" else None,
        rate=None if config.bits is None or config.explain_unused("bits") else LatentRate(K, E),
        **_ascent(config),
    )


def _ascent(config: Config) -> dict[str, Any]:
    return {"beta": config.beta, "n_step": config.n_step, "alpha": ALPHA[config.prior]}


def _build_residual(config: Config, shape: tuple[int, ...]) -> Residual:
    return Residual([_build_llgae(config, shape) for _ in range(config.levels)], config.sweeps)


def _build_shift(config: Config, shape: tuple[int, ...]) -> Shift:
    if len(shape) < 2:
        raise InputError(f"model shift: needs images (H, W) or (H, W, 3); samples here have {shape[0]} values")
    if 2 * config.window + 1 > min(shape[:2]):
        raise InputError(f"window: {config.window} is too wide for images of {shape[0]} x {shape[1]}")
    return Shift(_build_llgae(config, shape), shape, config.window)


def _build_autoencoder(config: Config, shape: tuple[int, ...]) -> Autoencoder:
    if config.decoder == "linear":
        raise InputError("decoder: linear with an autoencoder, which is then PCA; model: pca is that, solved exactly")
    sizes = (1, config.embed_dim, shape, config.width, config.channels)
    encoder, decoder = ENCODERS[config.decoder](*sizes), DECODERS[config.decoder](*sizes)
    return Autoencoder(encoder, decoder, math.prod(shape), config.embed_dim, config.precision == "bfloat16")


MODELS: dict[str, Callable[[Config, tuple[int, ...]], Model]] = {
    "llgae": _build_llgae,
    "pca": _build_llgae,
    "kmeans": _build_llgae,
    "soft-llgae": _build_soft_llgae,
    "gae": _build_gae,
    "deep-llgae": _build_gae,
    "residual": _build_residual,
    "shift": _build_shift,
    "autoencoder": _build_autoencoder,
    "denoising-autoencoder": _build_autoencoder,
}

CLOSED_FORM_TRAINERS: dict[str, Callable[..., Trainer]] = {
    "llgae": _build_closed_form_affine,
    "pca": _build_closed_form_affine,
    "kmeans": _build_closed_form_affine,
    "residual": _build_closed_form_residual,
    "shift": _build_closed_form_shift,
}


def restore(path: Path) -> tuple[Model, Checkpoint, Config]:
    """Return the model in a checkpoint, ready to encode and decode, with the checkpoint and its config.

    The model is first built without memory for its parameters and compared with the tensors, so that a damaged or
    hostile config cannot ask for more memory than the file holds. Raises InputError for an unsound file.
    """
    checkpoint = storage.load(path)
    try:
        config = parse_config(checkpoint.config)
        shape = tuple(int(side) for side in checkpoint.data["shape"])
        check_sizes(config, checkpoint)
        with torch.device("meta"), _NoRandomNumbers():
            expected = build_model(config, shape)
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, LlgaeError) as error:
        reason = printable(error, 200)
        raise InputError(f"{printable(path.name, 200)}: its config does not make a model ({reason})") from None
    check_state(expected, checkpoint, path)
    check_history(checkpoint, path)
    model = build_model(config, shape)
    load_state(model, checkpoint, path)
    return model, checkpoint, config


def restore_subspaces(path: Path) -> tuple[torch.Tensor, torch.Tensor, Checkpoint, Config]:
    """Return mu (K, D) and orthonormal bases U (K, D, E) of a checkpoint whose codes are projections of rows as given.

    Raises InputError as `restore`, and where centring or scaling change the rows, or x_hat is not the projection.
    """
    model, checkpoint, config = restore(path)
    name = printable(path.name, 200)
    how, affine = describe_loading(config, checkpoint), model.as_llgae()
    if affine is None:
        raise InputError(f"{name}: its model is {config.model}; the estimator is llgae, pca or kmeans")
    if how["centring"] != "none" or how["scaling"] is not None:
        raise InputError(f"{name}: its rows are centred or scaled, which the estimator does not do; use llgae_cli.load")
    W = checkpoint.state["W"]
    length = W.norm(dim=1, keepdim=True)  # (K, 1, E)
    U = W / length
    P = affine.maps()[0].detach().to(W)
    eye = torch.eye(W.shape[2]).to(W).expand(len(W), -1, -1)
    for matrix in (U.mT @ U, length.mT * P * length):
        if not torch.allclose(matrix, eye, atol=1e-3):
            raise InputError(f"{name}: its codes are not projections, which the estimator's are; use llgae_cli.load")
    return checkpoint.state["mu"], U, checkpoint, config


def shape_of(checkpoint: Checkpoint, model: Model) -> tuple[int, ...]:
    """Return the shape of a sample as the checkpoint says; (D,) where that does not make D values."""
    shape = checkpoint.data.get("shape")
    if not isinstance(shape, list) or not all(isinstance(side, int) and side > 0 for side in shape):
        return (model.D,)
    fits = math.prod(shape) == model.D and (len(shape) <= 2 or (len(shape) == 3 and shape[2] == 3))
    return tuple(shape) if fits else (model.D,)


def load_state(model: Model, checkpoint: Checkpoint, path: Path) -> None:
    """Load a checkpoint's tensors into a model; InputError where names, shapes or types do not fit."""
    check_state(model, checkpoint, path)
    model.load_state_dict(checkpoint.state)
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise InputError(f"{printable(path.name, 200)}: its tensors hold numbers beyond the range of the model's type")


def check_sizes(config: Config, checkpoint: Checkpoint) -> None:
    """Raise InputError for a size in the config that is larger than the number of values in the tensors.

    Building a model with 10^9 modules would take hours even without memory. Sizes up to ALWAYS_BUILT pass, since some
    are defaults that the model does not use.
    """
    most = max(ALWAYS_BUILT, sum(tensor.numel() for tensor in checkpoint.state.values()))
    for key in ("K", "embed_dim", "levels", "width", "channels", "gate_dim", "window"):
        if getattr(config, key, 0) > most:
            raise InputError(f"{key.replace('_', '-')}: {getattr(config, key)} for a model of at most {most} numbers")


def check_state(model: Model, checkpoint: Checkpoint, path: Path) -> None:
    """Raise InputError where a checkpoint's tensors do not match the model's by name, shape and kind of number."""
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
    """Raise InputError for a history or a peak that no run writes; figures and resuming rely on them."""
    peak = checkpoint.data.get("peak", 255.0)
    wrong = ""
    if not all({"epoch", "seconds"} <= row.keys() for row in checkpoint.history):
        wrong = "a row of its history lacks epoch or seconds"
    elif not all(abs(number) < LARGEST for row in checkpoint.history for number in row.values()):
        wrong = "its history holds numbers that are too large"
    elif not isinstance(peak, (int, float)) or not 0 < peak < LARGEST:
        wrong = f"its peak is {printable(peak)}, not a number above 0"
    if wrong:
        raise InputError(f"{printable(path.name, 200)}: {wrong}")


class _NoRandomNumbers(TorchFunctionMode):
    """Skip random initialisation of tensors on the meta device: torch would import its compiler for it, in 2 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.init.normal_, torch.nn.init.uniform_, torch.nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
