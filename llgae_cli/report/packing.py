"""Arrays as base64, for the data of a page."""

import base64

import numpy as np


def quantise(rows: np.ndarray) -> dict[str, str]:
    """Return rows (n, D) as int16 with a float32 scale each: value = integer * scale."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scale = np.where(largest > 0, largest / 32767, 1.0).astype(np.float32)
    whole = np.clip(np.rint(rows / scale[:, None]), -32767, 32767).astype("<i2")
    return {"values": encode_base64(whole), "scale": pack_floats(scale)}


def pack_floats(values: np.ndarray) -> str:
    """Return the values as little-endian float32 in base64."""
    return encode_base64(np.asarray(values).astype("<f4"))


def encode_base64(values: np.ndarray) -> str:
    """Return the array's bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
