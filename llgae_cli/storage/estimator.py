"""The scikit-learn estimator as a checkpoint: it was trained on an array, so its task, `npy:X`, is only a name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llgae_cli.storage.checkpoint as checkpoints
from llgae_cli.config import parse_config
from llgae_cli.storage.checkpoint_file import write

if TYPE_CHECKING:
    from torch import Tensor

TASK = "npy:X"
KEYS = {"n_init": "restarts", "moves": "moves", "tol": "tol", "candidates": "candidates", "shrinkage": "shrinkage"}
SEED = 28  # where random_state is no number


def save_estimator(
    path: str | os.PathLike[str], parameters: Mapping[str, Any], fitted: Mapping[str, Any], extras: Mapping[str, Any]
) -> None:
    """Write a checkpoint of model llgae with mu (K, D) and W = U (K, D, E), which beta 1 decodes exactly.

    `parameters` and `fitted` are those of the estimator, by its names; `extras` are statistics of the training samples,
    as a run's checkpoint has them. Its mean L2, of the training samples, stands for
    that of the test samples too: an estimator has none. Raises RunError where the file cannot be written.
    """
    import torch

    mu, U, labels, names = fitted["means_"], fitted["bases_"], fitted.get("labels_"), fitted.get("feature_names_in_")
    K, D, E = U.shape
    passes, mean_l2 = int(fitted["n_iter_"]), float(fitted["mean_l2_"])
    seed = parameters["random_state"]
    keys = {"task": TASK, "model": "llgae", "K": K, "embed-dim": E, "beta": 1.0, "n-step": 1}
    keys |= {"centring": "none", "scaling": "none", "epochs": int(parameters["max_iter"])}
    keys |= {"seed": int(seed) if hasattr(seed, "__index__") and int(seed) >= 0 else SEED}
    for name, key in KEYS.items():
        value = parameters[name]
        keys[key] = value if isinstance(value, str) else float(value) if key in ("tol", "shrinkage") else int(value)
    write(
        checkpoints.Checkpoint(
            config=parse_config(keys).plain(),
            state={"mu": torch.from_numpy(mu), "W": torch.from_numpy(U)},
            history=[{"epoch": passes, "seconds": 0.0, "train_mean_l2": mean_l2}],
            epoch=passes,
            mean_l2=mean_l2,
            train_mean_l2=mean_l2,
            seconds=0.0,
            data={
                "task": TASK,
                "fingerprint": "",
                "shape": [D],
                "classes": None,
                "peak": 1.0,
                "D": D,
                "source": "an array",
                "centring": "none",
                **({} if names is None else {"columns": [str(name) for name in names]}),
            },
            provenance=checkpoints.provenance(),
            extras={**extras, **({} if labels is None else {"labels": torch.from_numpy(labels)})},
        ),
        Path(path),
    )


def fitted_attributes(checkpoint: checkpoints.Checkpoint, mu: "Tensor", U: "Tensor") -> dict[str, Any]:
    """Return the attributes of the fitted estimator in a checkpoint, by its names; labels_ only where it was saved."""
    import numpy as np

    labels, columns = checkpoint.extras.get("labels"), checkpoint.data.get("columns")
    novelty = checkpoint.extras.get("novelty")
    return {
        "means_": mu.numpy(),
        "bases_": U.numpy(),
        "n_features_in_": mu.shape[1],
        "n_iter_": checkpoint.epoch,
        "mean_l2_": checkpoint.mean_l2,
        **({} if labels is None else {"labels_": labels.numpy()}),
        **({} if novelty is None else {"_novelty": {name: tensor.numpy() for name, tensor in novelty.items()}}),
        **({"feature_names_in_": np.array(columns, dtype=object)} if columns else {}),
    }
