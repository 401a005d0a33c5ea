"""A trained model on arrays: rows to codes and back, samples, likelihoods, in the data's own units."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llgae_cli.api.codes import Codes, check_codes
from llgae_cli.config import Config
from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.evaluation.encoding import Encoded, encode
from llgae_cli.evaluation.latents import Latents, draw_codes, read_latents
from llgae_cli.evaluation.metrics import measure
from llgae_cli.evaluation.novelty import Novelty, load_novelty, read_novelty
from llgae_cli.factory import Loading, choose_device, describe_loading, restore, shape_of
from llgae_cli.formatting import five_digits
from llgae_cli.models import Model
from llgae_cli.storage import Checkpoint, find_checkpoint
from llgae_cli.tasks import Samples

BLOCK = 1 << 14  # rows that are moved to the model's device at a time
CHUNK = 2048  # rows decoded at a time


@dataclass(frozen=True, eq=False, repr=False)
class FittedModel:
    """A trained model. `load` makes one of a checkpoint, `train` of a config.

    Samples X are arrays (N, D), or (N, *shape), in the units of the data; centring and scaling of the training rows
    are applied and undone. numpy in, numpy out; tensors of torch in, tensors on the same device out. What is decoded
    is float32, and float64 where the model scales its data. Rows go through in blocks, so memory is that of the result.
    A data frame's columns are found by name where the model's data had names.

    module      the torch module, on prepared rows: centred and scaled
    checkpoint  what the file holds
    config      the config it was trained with
    path        the file
    """

    module: Model
    checkpoint: Checkpoint
    config: Config
    path: Path

    def __repr__(self) -> str:
        module = self.module
        return (
            f"<FittedModel {self.config.model}: K = {module.K}, E = {module.E}, D = {module.D}; task {self.task}; "
            f"mean L2 {five_digits(self.metrics['mean_l2'])} on test>"
        )

    @property
    def task(self) -> str:
        """Name of the data set that it was trained on."""
        return self.config.task

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample: (H, W) or (H, W, 3) for images, (D,) for rows."""
        return shape_of(self.checkpoint, self.module)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """Names of the D variables; None where the data had none."""
        columns = self.checkpoint.data.get("columns")
        return tuple(columns) if columns else None

    @property
    def metrics(self) -> dict[str, Any]:
        """What the checkpoint records: mean_l2 (on test), train_mean_l2, epochs and seconds of the training.

        Mean L2 is mean (x - x_hat)^2 over samples and values, in squared units, of scaled data where that is scaled;
        train_mean_l2 is None for an unfinished run.
        """
        stored = self.checkpoint
        return {
            "mean_l2": stored.mean_l2,
            "train_mean_l2": stored.train_mean_l2,
            "epochs": stored.epoch,
            "seconds": stored.seconds,
        }

    def encode(self, X: Any) -> Codes:
        """Return the codes of X: component k (N,) and latents b (N, E), with what decoding needs besides them.

        Raises InputError for another shape, NaN, infinities, missing columns and types that are not numbers.
        """
        samples = self._prepare(X)
        N, S = samples.N, len(self.module.symbols)
        k, b, mean = torch.empty(N, dtype=torch.int64), torch.empty(N, self.module.E), torch.zeros(N)
        s = torch.empty(N, S, dtype=torch.int64) if S else None
        for rows, chunk, means in self._encode(samples):
            k[rows], b[rows], mean[rows] = chunk.code.k.cpu(), chunk.code.b.cpu(), means
            if s is not None:
                s[rows] = chunk.code.s.cpu()
        parts = (k, b, mean if samples.centring == "sample" else None, s)
        return Codes(*(None if part is None else _like(part, X) for part in parts))

    def decode(self, codes: Codes | tuple[Any, Any]) -> Any:
        """Return x_hat of codes, (N, *shape): mu_k + W_k b for model llgae, plus each sample's own mean.

        `codes` may be a pair (k, b). Raises InputError for codes that do not fit the model.
        """
        given = codes if isinstance(codes, Codes) else Codes(*codes)
        code, mean = check_codes(given, self.module)
        x_hat = self._empty(len(given))
        with torch.no_grad():
            for low in range(0, len(given), CHUNK):
                here = slice(low, low + CHUNK)
                part = type(code)(code.k[here], code.b[here], None if code.s is None else code.s[here])
                x_hat[here] = self._finish(self.module.decode(part), mean[here])
        return _like(x_hat.reshape(len(x_hat), *self.shape), given.b)

    def reconstruct(self, X: Any) -> Any:
        """Return x_hat of X, in the shape of X: `decode(encode(X))`. Raises InputError as `encode`."""
        samples = self._prepare(X)
        x_hat = self._empty(samples.N)
        with torch.no_grad():
            for rows, chunk, means in self._encode(samples):
                x_hat[rows] = self._finish(self.module.decode(chunk.code), means)
        return _like(x_hat.reshape(len(x_hat), *np.shape(X)[1:]) if _has_shape(X, self.shape) else x_hat, X)

    def sample(self, n: int, seed: int = 28, component: int | None = None, level: float = 0.0) -> NDArray[Any]:
        """Return n new samples, (n, *shape): k by its frequency in training, b from that component's Gaussian.

        `component` draws from one component only. Where the model's data is centred, samples are centred too, and
        `level` is added to them. Raises InputError for an unfinished run and for a component that does not exist.
        """
        if n < 1:
            raise InputError(f"n: {n} samples; at least 1 is expected")
        if component is not None and not 0 <= component < self.module.K:
            raise InputError(f"component: {component}; allowed are 0 to {self.module.K - 1}")
        drawn, low = self._empty(n), 0
        with torch.no_grad():
            for code in draw_codes(self.module, self._latents, n, seed, component):
                x_hat = self.module.decode(code.to(self.module.device))
                mean = torch.full((len(x_hat),), level if self._how["centring"] == "sample" else 0.0)
                drawn[low : low + len(x_hat)] = self._finish(x_hat, mean)
                low += len(x_hat)
        return drawn.reshape(n, *self.shape).numpy()

    def score_samples(self, X: Any) -> Any:
        """Return log p(x) of each sample in nat, (N,) float64: the lower, the more novel.

        The density is that of `llgae score`, a mixture of probabilistic PCAs, on centred and scaled rows. A checkpoint
        without it (of an unfinished run, or an earlier version) gets it from its training data. Raises InputError where
        that is missing, for models other than llgae, pca and kmeans, and as `encode`.
        """
        samples = self._prepare(X)
        log_p = torch.empty(samples.N, dtype=torch.float64)
        novelty = self._novelty
        density = novelty.density.to(self.module.device)
        for low in range(0, samples.N, BLOCK):
            part = samples.part(low, low + BLOCK).to(self.module.device)
            for here, x in part.chunks(CHUNK, dtype=novelty.model.mu.dtype):
                log_p[low + here.start : low + here.stop] = -density.negative_log_likelihood(x).cpu()
        return _like(log_p, X)

    def evaluate(self, X: Any, labels: Any = None) -> dict[str, Any]:
        """Return the metrics of X, of `llgae eval --json`: mean_l2, explained_variance, psnr, usage, per_class, ...

        `labels`: integers (N,), for per_class. Mean L2 is that of scaled rows where the model scales its data.
        """
        samples = self._prepare(X, labels).to(self.module.device)
        return measure(self.module, samples, float(self.checkpoint.data.get("peak", 255.0))).metrics.plain()

    def _repr_html_(self) -> str:
        """Return the numbers and a small picture as HTML, for notebooks."""
        from llgae_cli.api.display import draw_html

        return draw_html(self)

    @cached_property
    def _how(self) -> Loading:
        return describe_loading(self.config, self.checkpoint)

    @cached_property
    def _latents(self) -> Latents:
        latents = read_latents(self.checkpoint.extras, self.module, self.path)
        if latents is None:
            raise InputError(
                f"{printable(self.path.name, 200)}: has no statistics of its codes (an unfinished run, or an "
                "estimator of an earlier version); finish the run with resume, or fit again"
            )
        return latents

    @cached_property
    def _novelty(self) -> Novelty:
        novelty = read_novelty(self.checkpoint.extras, self.module, self.path)
        return load_novelty(self.path)[0] if novelty is None else novelty

    def _prepare(self, X: Any, labels: Any = None) -> Samples:
        """Return X as samples, checked, with the centring and the scaling of the training rows."""
        if hasattr(X, "columns") and hasattr(X, "to_numpy"):
            X = _select(X, self.columns)
        rows = X.detach().cpu() if isinstance(X, Tensor) else np.asarray(X)
        if isinstance(rows, Tensor):
            rows = (rows.float() if rows.dtype == torch.bfloat16 else rows).numpy()
        if rows.ndim < 1 or rows.shape[1:] not in ((self.module.D,), self.shape):
            allowed = dict.fromkeys([(self.module.D,), self.shape])
            texts = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in allowed)
            raise InputError(f"X: has shape {rows.shape}; {texts} is expected")
        if not len(rows):
            raise InputError("X: has no rows")
        samples = Samples(rows, labels, centring="none", origin="X")
        samples.check_finite()
        return samples.prepare(self._how["centring"], self._how["scaling"])

    def _encode(self, samples: Samples) -> Iterator[tuple[slice, Encoded, Tensor]]:
        """Yield rows of the samples, their codes, and their own means (n,), block by block on the model's device."""
        for low in range(0, samples.N, BLOCK):
            block = samples.part(low, low + BLOCK).to(self.module.device)
            for chunk in encode(self.module, block):
                rows = slice(low + chunk.rows.start, low + chunk.rows.stop)
                yield rows, chunk, block.means(chunk.rows).cpu()

    def _empty(self, n: int) -> Tensor:
        return torch.empty(n, self.module.D, dtype=torch.float32 if self._how["scaling"] is None else torch.float64)

    def _finish(self, x_hat: Tensor, mean: Tensor) -> Tensor:
        """Return decoded rows (n, D) in the data's own units: plus their means, then without the scaling."""
        u = x_hat.cpu() + mean[:, None]
        scaling = self._how["scaling"]
        return u if scaling is None else torch.from_numpy(scaling.undo(u.double().numpy()))


def load(checkpoint: str | os.PathLike[str], device: str = "cpu") -> FittedModel:
    """Return the model in a checkpoint, on `device`: cpu, cuda, mps or auto. Loading runs no code of the file.

    `checkpoint` is a path, or the short id of `llgae runs`, of a file in `checkpoints/`.
    Raises InputError for a file that is missing or unsound, and for a device that this machine lacks.
    """
    path = find_checkpoint(os.path.expanduser(checkpoint))
    model, stored, config = restore(path)
    return FittedModel(model.to(choose_device(device)), stored, config, path)


def _select(frame: Any, columns: tuple[str, ...] | None) -> NDArray[Any]:
    """Return the values of a data frame, of the columns with these names. Raises InputError for one that is missing."""
    if columns is None:
        return np.asarray(frame.to_numpy())
    present = [str(name) for name in frame.columns]
    for name in columns:
        if name not in present:
            raise InputError(f"X: has no column '{printable(name)}'{nearest(name, present)}")
    return np.asarray(frame[list(columns)].to_numpy())


def _has_shape(X: Any, shape: tuple[int, ...]) -> bool:
    return math.prod(shape) > 0 and tuple(np.shape(X)[1:]) == shape


def _like(result: Tensor, X: Any) -> Any:
    """Return a result as X is: a tensor on its device, or an array."""
    return result.to(X.device) if isinstance(X, Tensor) else result.numpy()
