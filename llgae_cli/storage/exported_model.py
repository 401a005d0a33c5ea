"""An affine model as a plain .safetensors file, for other programs.

    mu      float32 (K, D)        offsets
    W       float32 (K, D, E)     bases
    P       float32 (K, E, E)     b = P_k W_k^T (u - mu_k)
    centre  float64 (D,)          with scale, where the model's data is scaled: u = (v - centre) / scale
    scale   float64 (D,)

Decoding is u = mu_k + W_k b, and v = u * scale + centre. With centring `sample`, the mean of u is subtracted from each
row before encoding and added after decoding. Metadata, all text: format, centring, mean_l2, and config, columns
and shape as JSON.
"""

import json
from pathlib import Path
from typing import Any

import torch

from llgae_cli.errors import InputError, printable
from llgae_cli.models import Model
from llgae_cli.scaling import Scaling
from llgae_cli.storage.atomic import write_atomically
from llgae_cli.storage.checkpoint import Checkpoint

FORMAT = "llgae-model 1"


def export_model(
    path: Path, model: Model, checkpoint: Checkpoint, shape: tuple[int, ...], centring: str, scaling: Scaling | None
) -> None:
    """Write the model to the .safetensors file `path`, atomically; the module describes the file.

    Raises InputError for a model that is not K affine subspaces and without the package safetensors, RunError when the
    disk is full.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise InputError("export: needs the package safetensors; pip install 'llgae[export]'") from None
    affine = model.as_llgae()
    if affine is None:
        name = printable(checkpoint.config.get("model"), 40)
        raise InputError(f"export: the model is {name}; only llgae, pca and kmeans are mu and W alone")
    tensors = {"mu": affine.mu.detach(), "W": affine.W.detach(), "P": affine.maps()[0].detach()}
    if scaling is not None:
        tensors |= {"centre": torch.from_numpy(scaling.centre), "scale": torch.from_numpy(scaling.scale)}
    values: dict[str, Any] = {
        "config": checkpoint.config,
        "columns": checkpoint.data.get("columns"),
        "shape": list(shape),
    }
    metadata = {name: json.dumps(value, default=str) for name, value in values.items()}
    metadata |= {"format": FORMAT, "centring": centring, "mean_l2": repr(checkpoint.mean_l2)}
    content = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
