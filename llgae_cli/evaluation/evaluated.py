"""`Evaluated`: a checkpoint with its model, its data and one pass of the model over the test samples."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from llgae_cli.codec.codec import Codec
from llgae_cli.config import Config
from llgae_cli.errors import InputError, RunError, printable
from llgae_cli.evaluation.latents import Latents, read_latents
from llgae_cli.evaluation.metrics import Measured, Metrics, measure
from llgae_cli.evaluation.principal_axes import PrincipalAxes
from llgae_cli.evaluation.rate import BitSplit, Rate, RatePoint, measure_curve, measure_split, read_codec
from llgae_cli.evaluation.rate_estimate import count_float_bits, estimate_rate
from llgae_cli.evaluation.variables import Variables, measure_variables
from llgae_cli.factory import choose_device, describe_loading, restore, set_up_torch
from llgae_cli.formatting import format_value
from llgae_cli.models import Code, Model
from llgae_cli.storage import Checkpoint, compare_name
from llgae_cli.tasks import Samples, Task, load_task
from llgae_cli.threads import limit_threads

logger = logging.getLogger(__name__)

RANGE_SAMPLES = 1000
RANGES = {"uint8": (0.0, 255.0), "bool": (0.0, 1.0)}
TOLERANCE = 1e-4  # relative difference from the recorded mean L2 that is reported
MAX_DIFFERENCES = 3  # config keys that a model's name shows, at most


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint evaluated on a split of its task, by default the test samples.

    `train` makes one of the model in memory, `evaluate_checkpoint` one of a file; figures, reports, tables and sweep
    cells are made of it. `split_samples` are the samples that were measured. What only some of these need (the spread
    of the training samples' codes, say) is computed when it is first asked for.
    """

    path: Path
    checkpoint: Checkpoint
    config: Config
    model: Model
    task: Task
    split: str
    split_samples: Samples
    measured: Measured
    warnings: tuple[str, ...] = ()

    @property
    def metrics(self) -> Metrics:
        """The metrics of the measured samples."""
        return self.measured.metrics

    @property
    def finished(self) -> bool:
        """Whether the run had ended when the checkpoint was written. Only then is the training split measured."""
        return self.checkpoint.train_mean_l2 is not None

    @property
    def recorded(self) -> float | None:
        """The mean L2 that the checkpoint records for these samples; None for other data or for a part of them."""
        if self.task.fingerprint != self.checkpoint.data.get("fingerprint") or "measured" in self.checkpoint.data:
            return None
        recorded = {"test": self.checkpoint.mean_l2, "train": self.checkpoint.train_mean_l2}
        return recorded.get(self.split)

    @cached_property
    def latents(self) -> Latents:
        """Statistics of the training samples' codes: the checkpoint's, or of a pass over them for an unfinished run."""
        return read_latents(self.checkpoint.extras, self.model, self.path) or self._training.latents

    @cached_property
    def train_mean_l2(self) -> float:
        """The mean L2 on the training samples: the checkpoint's, or of a pass over them for an unfinished run."""
        recorded = self.checkpoint.train_mean_l2
        return self._training.metrics.mean_l2 if recorded is None else recorded

    @cached_property
    def _training(self) -> Measured:
        train, _ = self.task.hold_out(self.config.validation, self.config.seed)
        return measure(self.model, train, self.task.peak)

    @cached_property
    def axes(self) -> PrincipalAxes:
        """Principal axes of every component's codes."""
        return self.latents.axes(self.model)

    @cached_property
    def codec(self) -> Codec | None:
        """The checkpoint's codec; None for some networks, unfinished runs and files of earlier versions."""
        return read_codec(self.checkpoint.extras, self.model.D, self.path.name)

    @property
    def centred(self) -> bool:
        """Whether each sample's mean is subtracted from it."""
        return self.split_samples.centring == "sample"

    @cached_property
    def bit_split(self) -> BitSplit | None:
        """Where the bits of a measured sample go at the model's own step; None without a codec."""
        if self.codec is None:
            return None
        return measure_split(self.codec, self.split_samples, self.task.shape, self.centred)

    @cached_property
    def rate_curve(self) -> tuple[RatePoint, ...]:
        """Rate and error of the measured samples over steps, by rising step; empty without a codec."""
        return () if self.codec is None else measure_curve(self.codec, self.split_samples)

    @cached_property
    def rate(self) -> Rate:
        """Rate on the measured samples: the codec's at the model's own step, or an estimate where there is none."""
        split = self.bit_split
        if split is None:
            return estimate_rate(self.model, self.split_samples, self.metrics.mean_l2, self.latents)
        symbols, error = split.k + split.shifts, split.mean_squared_error
        return Rate(count_float_bits(self.model), symbols, split.bits, error, split.step, bits_estimated=False)

    @cached_property
    def validation_rate(self) -> Rate | None:
        """Rate on the held-out training samples, by which a model may be chosen; None where none are held out."""
        _, samples = self.task.hold_out(self.config.validation, self.config.seed)
        if samples is None:
            return None
        measured = measure(self.model, samples, self.task.peak)
        return replace(self, split="validation", split_samples=samples, measured=measured).rate

    @cached_property
    def variables(self) -> Variables | None:
        """How well each variable of a table is reconstructed; None for images."""
        return None if len(self.task.shape) > 1 else measure_variables(self.model, self.split_samples)

    @cached_property
    def k(self) -> np.ndarray:
        """Component of every measured sample, (N,)."""
        return self.measured.k.long().numpy()

    @cached_property
    def residual(self) -> np.ndarray:
        """Mean L2 of every measured sample, (N,)."""
        return self.measured.squared.double().div_(self.split_samples.D).numpy()

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Labels of the measured samples, (N,)."""
        labels = self.split_samples.labels
        return None if labels is None else labels.cpu().numpy()

    @cached_property
    def grey_levels(self) -> np.ndarray:
        """Mean of what centring subtracted from each component's samples, (K,); of all where a component has none."""
        means = self._means(slice(None))
        count = np.bincount(self.k, minlength=self.model.K)
        levels = np.bincount(self.k, weights=means, minlength=self.model.K) / np.maximum(count, 1)
        return np.where(count > 0, levels, means.mean())

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Values drawn black and white: 0 and 255 for 8-bit data, else the range of some thousand samples."""
        samples = self.split_samples
        if samples.stored in RANGES:
            return RANGES[samples.stored]
        v = self.originals(np.arange(0, samples.N, max(1, samples.N // RANGE_SAMPLES)))
        return float(v.min()), float(v.max())

    def originals(self, rows: np.ndarray) -> np.ndarray:
        """Return the stored values of these measured samples, (n, D)."""
        index = torch.as_tensor(np.ascontiguousarray(rows, dtype=np.int64))
        return self._to_units(self.split_samples.rows(index).cpu().numpy() + self._means(index)[:, None])

    @torch.no_grad()
    def reconstructions(self, rows: np.ndarray) -> np.ndarray:
        """Return x_hat of these measured samples in their own units, with their own means added, (n, D)."""
        index = torch.as_tensor(np.ascontiguousarray(rows, dtype=np.int64))
        x_hat = self.model.decode(self.model.encode(self.split_samples.rows(index)))
        return self._to_units(x_hat.cpu().numpy() + self._means(index)[:, None])

    @torch.no_grad()
    def decode(self, k: int, b: torch.Tensor) -> np.ndarray:
        """Return what component k decodes the latents b (n, E) to, plus the mean grey level of its samples, (n, D)."""
        return self.decode_code(self.latents.code(k, b))

    @torch.no_grad()
    def decode_code(self, code: Code) -> np.ndarray:
        """Return what codes decode to in the data's units, plus the mean grey level of their components, (n, D)."""
        x_hat = self.model.decode(code.to(self.model.device)).cpu().double().numpy()
        return self._to_units(x_hat + self.grey_levels[code.k.cpu().numpy()][:, None])

    def explained(self, k: int) -> np.ndarray:
        """Return the share (E,) of component k's variance along each axis; the rest is residual."""
        variance = self.axes.variance[k].numpy()
        own = self.residual[self.k == k]
        rest = float(own.mean()) * self.model.D if len(own) else 0.0
        total = variance.sum() + rest
        return variance / total if total > 0 else variance

    def by_use(self) -> np.ndarray:
        """Return the components, most used by the training samples first, (K,)."""
        return np.argsort(-self.latents.count.numpy(), kind="stable")

    @property
    def title(self) -> str:
        """The model with its sizes, as in `deep-llgae K=11 E=20`."""
        sizes = {"K": ("K", self.config.K), "E": ("embed-dim", self.model.E)}
        shown = [f"{letter}={n}" for letter, (key, n) in sizes.items() if not self.config.is_fixed(key)]
        return " ".join([self.config.model, *shown])

    def _to_units(self, u: np.ndarray) -> np.ndarray:
        scaling = self.split_samples.scaling
        return u if scaling is None else scaling.undo(u.astype(np.float64))

    def _means(self, index: slice | torch.Tensor) -> np.ndarray:
        return self.split_samples.means(index).cpu().numpy()


def evaluate_checkpoint(
    path: Path,
    split: str = "test",
    task: str | None = None,
    data_dir: Path | None = None,
    device: str = "cpu",
) -> Evaluated:
    """Evaluate a checkpoint on the test or train split of its own task, or of another task of the same dimension.

    Raises InputError for an unsound checkpoint, missing data or data of another dimension.
    """
    model, checkpoint, config = restore(path)
    set_up_torch(config)
    where = choose_device(device)
    how = describe_loading(config, checkpoint, other=task is not None)
    loaded = load_task(task or config.task, data_dir or config.data_dir, **how).to(where)
    return _evaluate(path, model.to(where), checkpoint, config, loaded, split, own_task=task is None)


def evaluate_checkpoints(
    paths: Sequence[Path], data_dir: Path | None = None, one_task: bool = False
) -> list[Evaluated]:
    """Evaluate checkpoints on their test samples, on the CPU; those that share a task share the loaded data.

    `one_task`: raise InputError where they were trained on different data or with different centring.
    """
    restored = [(path, *restore(path)) for path in paths]
    limit_threads()
    if one_task:
        _check_one_task([(path, checkpoint, config) for path, _, checkpoint, config in restored])
    tasks: dict[tuple[Any, ...], Task] = {}
    evaluated = []
    for path, model, checkpoint, config in restored:
        how = describe_loading(config, checkpoint)
        seed, scaling = config.seed if config.task == "subspaces" else 0, how["scaling"]
        key = (config.task, how["centring"], seed, how["options"], scaling and scaling.identity)
        if key not in tasks:
            tasks[key] = load_task(config.task, data_dir or config.data_dir, **how)
        evaluated.append(_evaluate(path, model, checkpoint, config, tasks[key]))
    return evaluated


def _check_one_task(restored: Sequence[tuple[Path, Checkpoint, Config]]) -> None:
    first, checkpoint, config = restored[0]
    expected = {"centring": config.centring, **checkpoint.data, "task": config.task}
    for path, other, other_config in restored[1:]:
        data = {"centring": other_config.centring, **other.data, "task": other_config.task}
        for key, what in (("fingerprint", "data"), ("centring", "centring"), ("scaling", "scaling")):
            if data.get(key) != expected.get(key):
                raise InputError(
                    f"{printable(path.name, 200)}: other {what} ({printable(data['task'], 60)}, {data.get(key)}) than "
                    f"{printable(first.name, 200)}'s ({printable(expected['task'], 60)}, {expected.get(key)}); "
                    "compare checkpoints of one task"
                )


def _evaluate(
    path: Path,
    model: Model,
    checkpoint: Checkpoint,
    config: Config,
    task: Task,
    split: str = "test",
    own_task: bool = True,
) -> Evaluated:
    if task.test.D != model.D:
        raise InputError(
            f"{printable(task.name, 60)}: samples of {task.test.D} values; those of {printable(path.name, 200)} have "
            f"{model.D}"
        )
    samples = task.test if split == "test" else task.hold_out(config.validation, config.seed)[0]
    measured = measure(model, samples, task.peak)
    mean_l2 = measured.metrics.mean_l2
    if not math.isfinite(mean_l2):
        raise RunError(f"{path.name}: mean L2 is {mean_l2} on {task.name}: the ascent on b overflows there")
    warnings = [line for line in [compare_name(path, checkpoint)] if line]
    if checkpoint.train_mean_l2 is None:
        warnings.append(f"an unfinished run's checkpoint, after epoch {checkpoint.epoch} of {config.epochs}")
    if own_task and task.fingerprint != checkpoint.data.get("fingerprint"):
        warnings.append("the data is not what the checkpoint was trained on: its fingerprint differs")
    evaluated = Evaluated(path, checkpoint, config, model, task, split, samples, measured)
    recorded = evaluated.recorded
    if recorded is not None and abs(recorded - mean_l2) > TOLERANCE * max(recorded, 1e-12):
        warnings.append(f"mean L2 is {mean_l2:.5f} and was recorded as {recorded:.5f}")
    for line in warnings:
        logger.warning("%s: %s", printable(path.name, 200), line)
    return replace(evaluated, warnings=tuple(warnings))


def name_models(evaluated: Sequence[Evaluated]) -> list[str]:
    """Return a short name for each, no two alike: the title, with config keys that tell equal titles apart."""
    names: list[str] = []
    for one in evaluated:
        own = one.config.used_values()
        alike = [other.config.used_values() for other in evaluated if other.title == one.title]
        telling = choose_keys(alike, [key for key in own if key not in one.config.neutral()])
        name = " ".join([one.title, *(f"{key}={format_value(hide_folders(own[key]), 16)}" for key in telling)])
        same = sum(other.partition(" (")[0] == name for other in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def choose_keys(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Return at most MAX_DIFFERENCES of the keys that tell configs apart, in their order; fewer where those suffice.

    Each is the one by which most configs differ, given those chosen before it.
    """

    def count(chosen: Sequence[str]) -> int:
        return len({tuple(str(config.get(key)) for key in chosen) for config in configs})

    chosen: list[str] = []
    while len(chosen) < MAX_DIFFERENCES:
        best = max(keys, key=lambda key: count([*chosen, key]), default=None)
        if best is None or count([*chosen, best]) == count(chosen):
            break
        chosen.append(best)
    return [key for key in keys if key in chosen]


def hide_folders(value: Any) -> Any:
    """Return the value; of an absolute path, alone or in a task's name, the last part: figures and pages are shared."""
    if not isinstance(value, str):
        return value
    kind, colon, path = value.partition(":")
    if colon and kind in ("npy", "images") and (PurePath(path).is_absolute() or path.startswith("~")):
        return f"{kind}:{PurePath(path).name}"
    return PurePath(value).name or value if PurePath(value).is_absolute() else value
