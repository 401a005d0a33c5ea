"""Test samples coded at a given rate: the file that `llgae compress --bits` writes, and what it decodes to."""

from dataclasses import dataclass

import numpy as np

from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation.distortion import Bound, Distortion
from llgae_cli.evaluation.evaluated import Evaluated

CODED_SAMPLES = 10_000  # that are coded, at most


@dataclass(frozen=True, eq=False)
class Coded:
    """Test samples coded in one file.

    n                    samples in the file
    bits                 bytes of the complete file, without the model, times 8 and over n
    mean_squared_error   of the decoded values in the stored type, as `llgae compress` prints it
    values               what the samples that were asked for decode to, (m, D), in the stored type
    """

    n: int
    bits: float
    mean_squared_error: float
    values: np.ndarray


def code_at_rate(evaluated: Evaluated, bits: float, shown: np.ndarray) -> Coded:
    """Code the samples at a step for which a file takes `bits` a sample; `shown` (m,) are the rows to return decoded.

    All samples are coded, or of more than 10,000 evenly spaced ones and those of `shown`. Raises InputError, with the
    checkpoint's name, for a rate that its codec cannot reach, and where it has none.
    """
    samples, codec = evaluated.split_samples, evaluated.codec
    name = printable(evaluated.path.name, 200)
    if codec is None:
        raise InputError(f"{name}: has no codec")
    every = range(0, samples.N, -(-samples.N // CODED_SAMPLES))
    rows = np.union1d(np.array(every), shown)
    x = samples.stored_array(slice(None) if len(rows) == samples.N else rows)
    try:
        data = codec.encode(x.reshape(-1, *evaluated.task.shape), bits=bits)
    except InputError as problem:
        raise InputError(f"{name}: {problem}") from None
    decoded = codec.decode(data).reshape(x.shape)
    error = Distortion(Bound(unit=codec.unit))
    error.add(x, decoded)
    return Coded(len(rows), 8 * len(data) / len(rows), error.mean, decoded[np.searchsorted(rows, shown)])
