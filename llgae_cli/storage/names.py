"""File names of checkpoints: one codec writes and reads them, also those of the original. Does not import torch."""

import hashlib
import math
import re
import sys
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llgae_cli.config import Config
from llgae_cli.errors import InputError, RunError, printable

SUFFIX = ".pkl"
MAX_SLUG = 40  # with every other field at its longest the name still has at most the 255 bytes of a file system
MAX_NAME = 255
MAX_COUNT = 10**9  # K, embed-dim, n-step and epoch stay below it, so that the name is short enough

NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]{1,3})?"
SLUG = rf"[A-Za-z0-9._-]{{1,{MAX_SLUG}}}"
MODEL = r"[A-Z][A-Z0-9-]{0,23}"
TRAINER = r"[a-z][a-z-]{0,15}"
LOG = r"-?[0-9]+(?:\.[0-9]+)?"
CONFIG_ID = r"[0-9a-f]{6}(?:[0-9a-f]{4})?"  # ten digits; six in the names of older checkpoints

# No later field can contain the text between slug and model (an upper-case word after "-model-name"), so the greedy
# match of the slug is right: a task may be called "x-model-nameLLGAE-K11" and is read back completely.
_OURS = re.compile(
    rf"S(?P<seed>[0-9]{{1,19}})-task(?P<task>{SLUG})-model-name(?P<model>{MODEL})-K(?P<K>[0-9]{{1,9}})"
    rf"-embed-dim(?P<embed_dim>[0-9]{{1,9}})-beta(?P<beta>{NUMBER})-n-step(?P<n_step>[0-9]{{1,9}})"
    rf"-loglr(?P<loglr>{LOG})-trainer(?P<trainer>{TRAINER})-cfg(?P<config_id>{CONFIG_ID})"
    rf"_(?P<epoch>[0-9]{{1,9}})_(?P<mean_l2>{NUMBER})\.pkl"
)

# Keys of the original, in its order, and the pattern of the value of each.
_ORIGINAL_KEYS = {
    "shuffle": r"[0-9]{1,9}",
    "depth": r"[0-9]{1,9}",
    "graph-dim": r"[0-9]{1,9}",
    "embed-dim": r"[0-9]{1,9}",
    "iter-per-layer": r"-?[0-9]{1,9}",
    "kernel-size": r"[0-9]{1,9}",
    "model-name": MODEL,
    "beta": NUMBER,
    "n-step": r"[0-9]{1,9}",
    "p-null": NUMBER,
    "loglr": LOG,
}
_ORIGINAL_FIELDS = {
    "kernel-size": "K",
    "embed-dim": "embed_dim",
    "model-name": "model",
    "beta": "beta",
    "n-step": "n_step",
    "loglr": "loglr",
}
_ORIGINAL_EXTRA = tuple(key for key in _ORIGINAL_KEYS if key not in _ORIGINAL_FIELDS)
_ORIGINAL_LAST = {key: re.compile(rf"-{key}({value})\Z") for key, value in _ORIGINAL_KEYS.items()}
_ORIGINAL_ENDS = re.compile(rf"-S(?P<seed>[0-9]{{1,19}})-task(?P<task>{SLUG})")
_ORIGINAL = re.compile(rf"(?P<head>.*)_(?P<epoch>[0-9]{{1,9}})_(?P<mean_l2>{NUMBER})\.pkl")


@dataclass(frozen=True)
class CheckpointName:
    """Fields of a checkpoint's name. The name is only a label: the file's content is the truth.

    `task` is a slug (see `slug`), `lr` the learning rate itself, `config_id` ten hex digits of the whole resolved
    config (six in older names), `mean_l2` the test mean L2 in squared grey levels per pixel. A name without `config_id`
    comes from the original: its trainer is 'gradient', and `extra` has the original's further keys as text.

    Raises InputError, in one line, for a value that no name can hold.
    """

    seed: int
    task: str
    model: str
    K: int
    embed_dim: int
    beta: float
    n_step: int
    lr: float
    trainer: str
    config_id: str
    epoch: int
    mean_l2: float
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the fields."""
        for key in ("beta", "lr", "mean_l2"):
            object.__setattr__(self, key, float(getattr(self, key)))
        for key, least, bound in (
            ("seed", 0, 2**63),
            ("K", 1, MAX_COUNT),
            ("embed_dim", 0, MAX_COUNT),
            ("n_step", 0, MAX_COUNT),
            ("epoch", 0, MAX_COUNT),
        ):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < bound:
                self._refuse(key, f"an integer from {least} to {bound - 1}")
        for key in ("beta", "lr"):
            if not 0 < getattr(self, key) < math.inf:
                self._refuse(key, "a number above 0")
        for key, pattern, allowed in (
            ("task", SLUG, f"1 to {MAX_SLUG} of A-Z a-z 0-9 . _ -"),
            ("model", MODEL.replace("A-Z", "a-z"), "a lower-case word of at most 24, dashes within"),
            ("trainer", TRAINER, "a lower-case word of at most 16, dashes within"),
            ("config_id", rf"(?:{CONFIG_ID})?", "ten or six hex digits"),
        ):
            if not isinstance(getattr(self, key), str) or not re.fullmatch(pattern, getattr(self, key)):
                self._refuse(key, allowed)
        if self.config_id and self.extra:
            self._refuse("extra", "empty where there is a config_id")
        if not self.config_id and self.trainer != "gradient":
            self._refuse("trainer", "'gradient' where there is no config_id")
        for key, text in self.extra.items():
            if key not in _ORIGINAL_EXTRA or not re.fullmatch(_ORIGINAL_KEYS[key], text):
                self._refuse("extra", f"values for {', '.join(_ORIGINAL_EXTRA)}")

    def _refuse(self, key: str, allowed: str) -> None:
        value = printable(getattr(self, key))
        raise InputError(f"{key.replace('_', '-')}: {value} is not possible in a checkpoint's name; allowed: {allowed}")

    def format(self) -> str:
        """Return the file name. `parse` reads it back: all fields equal, lr to 1e-5 of itself, mean_l2 to 5 decimals.

        Raises RunError when mean_l2 is not a finite number >= 0: no checkpoint of a diverged run is ever written.
        """
        if not 0 <= self.mean_l2 < math.inf:
            raise RunError(f"mean L2 is {self.mean_l2}: the run diverged, and no checkpoint of it is written")
        end = f"_{self.epoch}_{_mean_l2_text(self.mean_l2)}{SUFFIX}"
        if not self.config_id:
            return self._format_original() + end
        return (
            f"S{self.seed}-task{self.task}-model-name{self.model.upper()}-K{self.K}-embed-dim{self.embed_dim}"
            f"-beta{_text(self.beta)}-n-step{self.n_step}-loglr{_loglr(self.lr)}-trainer{self.trainer}"
            f"-cfg{self.config_id}{end}"
        )

    def _format_original(self) -> str:
        values = {
            **self.extra,
            "kernel-size": str(self.K),
            "embed-dim": str(self.embed_dim),
            "model-name": self.model.upper(),
            "beta": _text(self.beta),
            "n-step": str(self.n_step),
            "loglr": _loglr(self.lr),
        }
        return f"-S{self.seed}-task{self.task}" + "".join(f"-{k}{values[k]}" for k in _ORIGINAL_KEYS if k in values)

    @classmethod
    def parse(cls, text: str) -> "CheckpointName":
        """Read a file name (no folder), ours or the original's.

        Raises InputError, in one line, for any other text.
        """
        # The bound comes first: it also keeps every search below short.
        parse = _parse_original if text.startswith("-") else _parse_ours
        values = parse(text) if len(text) <= MAX_NAME else None
        if values is None:
            raise InputError(
                f"{printable(text, 120)}: not the name of a checkpoint"
                " (S28-taskmnist-model-nameLLGAE-K11-...-cfg3f9a2c_540_768.06268.pkl)"
            )
        try:
            loglr = values.pop("loglr")
            fields = {
                key: int(value) if key in {"seed", "K", "embed_dim", "n_step", "epoch"} else value
                for key, value in values.items()
            }
            name = cls(**{**fields, "lr": _lr(loglr), "model": values["model"].lower()})
            if not math.isfinite(name.mean_l2):
                raise InputError("mean L2: out of range")
            return name
        except InputError as error:
            raise InputError(f"{printable(text, 120)}: not the name of a checkpoint: {error}") from None


def name_of(config: Config, epoch: int, mean_l2: float) -> CheckpointName:
    """Return the name of the config's checkpoint after `epoch` epochs with a test mean L2 of `mean_l2`.

    `config.identity()` represents the keys that are not in the name. Raises InputError for a value that a name cannot
    hold (K >= 10^9): call it before training with mean_l2 = 0, so that no run fails of this at its end.
    """
    return CheckpointName(
        seed=config.seed,
        task=slug(config.task),
        model=config.model,
        K=config.K,
        embed_dim=config.embed_dim,
        beta=config.beta,
        n_step=config.n_step,
        lr=config.lr,
        trainer=config.trainer,
        config_id=config.identity(),
        epoch=epoch,
        mean_l2=mean_l2,
    )


def slug(task: str) -> str:
    """Return a task's name as A-Z a-z 0-9 . _ -, at most 40 characters, without '..', no '.' or '-' at either end.

    A plain name is its own slug. Of a path the last part is kept: `npy:/data/my set.npy` gives `npy-my-set.npy-` and
    eight hex digits of the task's SHA-256. Two tasks never share a slug: the digits are added where anything was
    changed, and to a name that itself ends like such digits.
    """
    kind, colon, path = task.partition(":")
    last = re.split(r"[/\\]", (path if colon else task).rstrip("/\\"))[-1]
    plain = unicodedata.normalize("NFKD", f"{kind}-{last}" if colon else last).encode("ascii", "ignore").decode()
    plain = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", plain))).strip(".-")
    if plain == task and len(plain) <= MAX_SLUG and not re.search(r"-[0-9a-f]{8}\Z", plain):
        return plain
    digits = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[: MAX_SLUG - 9].strip('.-') or 'task'}-{digits}"


def _parse_ours(text: str) -> dict[str, Any] | None:
    match = _OURS.fullmatch(text)
    return match.groupdict() if match else None


def _parse_original(text: str) -> dict[str, Any] | None:
    match = _ORIGINAL.fullmatch(text)
    if match is None:
        return None
    # Keys are removed from the right end until one repeats or is unknown: the rest is seed and task. A task whose name
    # ends in "-depth3" stays complete, because depth has been removed before.
    head, seen = match["head"], {}
    while True:
        last = next((m for k, p in _ORIGINAL_LAST.items() if k not in seen and (m := p.search(head))), None)
        if last is None:
            break
        seen[last[0][1 : last.start(1) - last.start()]] = last[1]
        head = head[: last.start()]
    front = _ORIGINAL_ENDS.fullmatch(head)
    if front is None or not seen.keys() >= _ORIGINAL_FIELDS.keys():
        return None
    return {
        **front.groupdict(),
        **{name: seen[key] for key, name in _ORIGINAL_FIELDS.items()},
        "trainer": "gradient",
        "config_id": "",
        "epoch": match["epoch"],
        "mean_l2": match["mean_l2"],
        "extra": {key: seen[key] for key in _ORIGINAL_EXTRA if key in seen},
    }


def _text(value: float) -> str:
    return repr(value).replace("e+", "e")  # the shortest text that is parsed as the same number


def _mean_l2_text(value: float) -> str:
    return f"{value + 0.0:.5f}" if value < 1e16 else _text(value)  # + 0.0 turns -0.0 into 0.0


def _loglr(lr: float) -> str:
    text = f"{math.log10(lr):.6f}".rstrip("0")
    text = text + "0" if text.endswith(".") else text
    return "0.0" if text == "-0.0" else text


def _lr(loglr: str) -> float:
    """Return the shortest decimal whose log10 is printed as `loglr`: -3.522879 is 0.0003, not 0.00029999983."""
    try:
        exact = math.pow(10.0, float(loglr))
    except OverflowError:
        exact = sys.float_info.max if loglr == _loglr(sys.float_info.max) else math.inf
    if not 0 < exact < math.inf:
        raise InputError(f"loglr: {loglr} is out of range")
    for digits in range(17):
        lr = float(f"{exact:.{digits}e}")
        if 0 < lr < math.inf and float(_loglr(lr)) == round(float(loglr), 6):
            return lr
    return exact
