"""What a figure or a report is about: a checkpoint, its data, and one pass of the model over the test samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from llgae_cli import codes, metrics
from llgae_cli.checkpoints import Checkpoint, disagreement
from llgae_cli.config import FIXED, Config
from llgae_cli.directions import Directions
from llgae_cli.errors import InputError
from llgae_cli.figures.cells import Looks
from llgae_cli.models import Code, Model, Residual
from llgae_cli.restoring import restore
from llgae_cli.tasks import Task, load_task

RANGE_SAMPLES = 1000
RANGES = {"uint8": (0.0, 255.0), "bool": (0.0, 1.0)}
UNFINISHED = "an unfinished run's checkpoint: use and spread of the components are the test samples'"
TOLD = 2  # differences that a name tells at most


@dataclass(frozen=True)
class Subject:
    """A checkpoint looked at on its test samples.

    `k` (N,) component and `residual` (N,) mean squared residual of every test sample. `latents`: spread of the codes
    (of the training samples where the checkpoint has it, else of the test samples). `levels` (K,): mean grey level
    that centring took from each component's test samples, on average (from all, where a component has none).
    `warnings`: lines a reader should see.
    """

    path: Path
    model: Model
    checkpoint: Checkpoint
    config: Config
    task: Task
    evaluation: metrics.Evaluation
    latents: metrics.Latents
    directions: Directions
    k: np.ndarray
    residual: np.ndarray
    labels: np.ndarray | None
    levels: np.ndarray
    looks: Looks
    warnings: tuple[str, ...]

    def originals(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Stored values v, reconstructions x_hat + mean, both (n, D), and means (n,), of those test samples."""
        index = torch.as_tensor(np.ascontiguousarray(rows, dtype=np.int64))
        x, means = self.task.test.rows(index), self.task.test.means(index)
        with torch.no_grad():
            x_hat = self.model.decode(self.model.encode(x))
        return (x + means[:, None]).numpy(), (x_hat + means[:, None]).numpy(), means.numpy()

    @torch.no_grad()
    def drawn(self, k: int, b: torch.Tensor) -> np.ndarray:
        """What component k draws at the latents b (n, E), plus the mean grey level of its samples, (n, D)."""
        s = codes.centres(self.latents).s
        code = Code(torch.full((len(b),), k), b.float(), None if s is None else s[k].repeat(len(b), 1))
        return (self.model.decode(code).double() + self.levels[k]).numpy()

    def by_use(self) -> np.ndarray:
        """The components, most used by the training samples first; (K,)."""
        return np.argsort(-self.latents.count.numpy(), kind="stable")

    @property
    def level(self) -> str:
        """Which components `k` counts, where a model has several levels of them: words for a title, else none."""
        return " of the first level" if isinstance(self.model, Residual) and self.model.symbols else ""

    @property
    def name(self) -> str:
        """The model, its components K and the numbers E in its b, as in `deep-llgae K=11 E=20`."""
        fixed = FIXED.get(self.config.model, {})
        sizes = {"K": self.config.K, "E": self.model.E}
        shown = [f"{key}={n}" for key, n in sizes.items() if {"K": "K", "E": "embed-dim"}[key] not in fixed]
        return " ".join([self.config.model, *shown])


def names(subjects: Sequence[Subject]) -> list[str]:
    """A short name for each subject, no two alike: `name`, with what differs in the configs of those that share one."""
    found: list[str] = []
    for subject in subjects:
        alike = [other.config for other in subjects if other.name == subject.name]
        plain = [config.shown() for config in alike]
        own = subject.config.shown()
        different = [
            key for key in own if key not in subject.config.neutral() and len({str(one.get(key)) for one in plain}) > 1
        ]
        told = " ".join([subject.name, *(f"{key}={_short(own[key])}" for key in different[:TOLD])])
        same = sum(name.partition(" (")[0] == told for name in found)
        found.append(f"{told} ({same + 1})" if same else told)
    return found


def without_folders(value: Any) -> Any:
    """Return the value; of an absolute path, bare or in a task's name, the last part: figures and pages are shared."""
    if not isinstance(value, str):
        return value
    kind, colon, path = value.partition(":")
    if colon and kind in ("npy", "images") and (PurePath(path).is_absolute() or path.startswith("~")):
        return f"{kind}:{PurePath(path).name}"
    return PurePath(value).name or value if PurePath(value).is_absolute() else value


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(without_folders(value))
    return text if len(text) <= 16 else f"{text[:15]}…"


def look(path: Path, data_dir: Path | None = None, task: Task | None = None) -> Subject:
    """Restore a checkpoint, load its task (unless given) and measure it on the test samples, on the CPU.

    Raises InputError for an unsound checkpoint, or data that cannot be had or has another dimension.
    """
    model, checkpoint, config = restore(path)
    if task is None:
        task = load_task(config.task, data_dir or config.data_dir, config.centring, config.seed)
    if task.test.D != model.D:
        raise InputError(f"{path.name}: samples of {task.test.D} values; the checkpoint's have {model.D}")
    evaluation, latents = metrics.measure(model, task.test, task.peak)
    warnings = [line for line in [disagreement(path, checkpoint)] if line]
    if task.fingerprint != checkpoint.data.get("fingerprint"):
        warnings.append("the data is not what the checkpoint was trained on: its fingerprint differs")
    elif abs(checkpoint.mean_l2 - evaluation.mean_l2) > 1e-4 * max(checkpoint.mean_l2, 1e-12):
        warnings.append(f"mean L2 is {evaluation.mean_l2:.5f} and was recorded as {checkpoint.mean_l2:.5f}")
    try:
        latents = codes.latents_of(checkpoint, model, path)
    except InputError:  # an unfinished run's checkpoint: the test samples' spread stands in
        warnings.append(UNFINISHED)
    k, residual, levels = _coded(model, task)
    labels = None if task.test.labels is None else task.test.labels.numpy()
    return Subject(
        path=path,
        model=model,
        checkpoint=checkpoint,
        config=config,
        task=task,
        evaluation=evaluation,
        latents=latents,
        directions=codes.directions_of(model, latents),
        k=k,
        residual=residual,
        labels=labels,
        levels=levels,
        looks=looks_of(task),
        warnings=tuple(warnings),
    )


def looks_of(task: Task) -> Looks:
    """How the task's samples are drawn: 8-bit values from 0 to 255, others over the range of a thousand samples."""
    if task.test.stored in RANGES:
        return Looks(task.shape, *RANGES[task.test.stored])
    step = max(1, task.test.N // RANGE_SAMPLES)
    rows = slice(0, None, step)
    v = task.test.rows(rows) + task.test.means(rows)[:, None]
    return Looks(task.shape, float(v.min()), float(v.max()))


@torch.no_grad()
def _coded(model: Model, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    test = task.test
    k, residual, means = np.empty(test.N, np.int64), np.empty(test.N), np.empty(test.N)
    for here, x in test.chunks(metrics.CHUNK):
        code = model.encode(x)
        k[here], residual[here] = code.k.numpy(), model.residual(x, code).square_().mean(1).numpy()
        means[here] = test.means(here).numpy()
    count = np.bincount(k, minlength=model.K)
    levels = np.bincount(k, weights=means, minlength=model.K) / np.maximum(count, 1)
    return k, residual, np.where(count > 0, levels, means.mean())
