"""Small checkpoints of every kind that figures and reports must cope with, trained through the package's own door."""

from pathlib import Path

import numpy as np

from llgae_cli import experiment
from llgae_cli.config import Config


def train(folder: Path, **keys: object) -> Path:
    """Train for two epochs and return the checkpoint."""
    settings = {
        "task": "subspaces", "K": 4, "embed_dim": 3, "epochs": 2, "restarts": 1, "moves": 0, "device": "cpu",
        "threads": 1, "checkpoint_dir": folder, **keys,
    }  # fmt: skip
    path = experiment.train(Config.model_validate(settings)).checkpoint
    assert path is not None
    return path


def vectors(folder: Path, n: int = 300, D: int = 21) -> str:
    """The task of a file of N x D numbers without labels; returns its name."""
    t = np.linspace(0, 1, D)
    generator = np.random.default_rng(1)
    phase, speed = generator.uniform(0, 6, (n, 1)), generator.integers(1, 4, (n, 1))
    np.save(folder / "waves.npy", np.sin(phase + 6 * speed * t).astype(np.float32))
    return f"npy:{folder / 'waves.npy'}"


def colours(folder: Path, n: int = 200) -> str:
    """The task of a file of N x 6 x 9 x 3 bytes; returns its name."""
    generator = np.random.default_rng(2)
    base = generator.integers(0, 256, (3, 6, 9, 3))
    values = base[generator.integers(0, 3, n)] + generator.normal(0, 20, (n, 6, 9, 3))
    np.save(folder / "colours.npy", np.clip(values, 0, 255).astype(np.uint8))
    return f"npy:{folder / 'colours.npy'}"
