"""A decoder network for the page's explorer, small enough for a page: network.js computes the same values from it.

A row of a weight matrix is stored as integers with one scale: 12 bits each, and 10 in a matrix of more than a million
weights. Biases are float32. A convolution's rows are its outputs, in the order (height, width, input).
"""

from typing import Any

import numpy as np
from torch import nn

from llgae_cli.models import Parts
from llgae_cli.report.packing import encode_base64, pack_floats

BITS, BITS_OF_LARGE, LARGE = 12, 10, 1_000_000  # of a weight; of one in a matrix of more than so many


def pack_network(parts: Parts, order: np.ndarray) -> dict[str, Any] | None:
    """Return unit, layers and the embeddings of the components `order`; None for a decoder without a network."""
    if parts.network is None or parts.unit is None:
        return None
    layers = {}
    for name, module in parts.network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            assert module.bias is not None
            weight, bias = (values.detach().cpu().double().numpy() for values in (module.weight, module.bias))
            weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1) if weight.ndim == 4 else weight
            layers[name] = {**pack_integers(weight), "bias": pack_floats(bias)}
    k = parts.network.get_submodule("k").weight
    assert isinstance(k, nn.Parameter)
    return {"unit": float(parts.unit), "layers": layers, "k": pack_floats(k.detach().cpu().numpy()[order])}


def count_bytes(network: nn.Module | None) -> int:
    """Return about how many bytes of base64 a network takes on the page; 0 for none."""
    total = 0
    for name, parameter in network.named_parameters() if network is not None else ():
        n = parameter.numel()
        if parameter.dim() == 1 or name == "k.weight":  # stored as float32
            total += 32 * n
        else:
            total += (BITS_OF_LARGE if n > LARGE else BITS) * n + 32 * len(parameter)  # and a scale for each row
    return total // 6


def pack_integers(rows: np.ndarray) -> dict[str, Any]:
    """Return rows (n, m) as a stream of signed integers of `bits` bits, lowest bit first, with a float32 scale each."""
    bits = BITS_OF_LARGE if rows.size > LARGE else BITS
    most = 2 ** (bits - 1) - 1
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest / most, 1.0).astype(np.float32)
    whole = np.clip(np.rint(rows / scale[:, None]), -most, most).astype(np.int32)
    stream = np.packbits((whole.reshape(-1, 1) >> np.arange(bits) & 1).astype(np.uint8), bitorder="little")
    return {"bits": bits, "width": rows.shape[1], "values": encode_base64(stream), "scale": pack_floats(scale)}
