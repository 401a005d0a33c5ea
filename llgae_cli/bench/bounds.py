"""`llgae bench bounds`: sizes under a bound on every value's error: our codec, zfp and Blosc2 on autoignition states.

The states are those of `bench.tables`, in float64, with every column divided by its standard deviation, so that one
bound fits all columns. Every fifth stretch of neighbouring time steps is coded; the others train our model, whose size
is a row of its own. Our codec codes every row alone, and can read any row alone; the peers code all rows together, once
in the order of time and once shuffled. They get the best of several layouts:

    zfp     its fixed-accuracy mode, on rows by columns and on columns by rows
    Blosc2  values rounded to multiples of twice the bound, or differences of such values between neighbouring rows, as
            integers; rows by columns or columns by rows; shuffled by bytes or bits; zstd at its highest level

The largest error of each method is measured on what it decodes to.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llgae_cli import experiment
from llgae_cli.bench.row import Row
from llgae_cli.bench.tables import MIXTURES, Array, load_states
from llgae_cli.codec.codec import Codec
from llgae_cli.config import Config
from llgae_cli.errors import InputError

BOUNDS = (1e-2, 1e-3, 1e-4, 1e-5)  # in standard deviations of a column
STRETCH = 1000  # neighbouring rows that stay together
FOLDS = 5  # of the stretches; one is coded
K, E = 50, 20  # of our model; E is at most the number of columns
BLOSC_LEVEL = 9


def measure_bounds() -> Iterator[Row]:
    """Yield for each mixture our model's size, and for each bound the compression ratio, ours and a peer's.

    A compression ratio is the bytes of the float64 values over those of the file. Raises InputError where a library of
    the extra is missing.
    """
    peers = load_peers()
    for name in MIXTURES:
        train, test = split_stretches(load_states(name))
        scale = train.std(0)
        scale[scale == 0] = 1.0
        train, test = train / scale, test / scale
        codec = train_codec(train, test)
        where = f"{name}, {len(test)} x {test.shape[1]}"
        yield Row("bounds", f"{where}: our model; the rows", codec.size, "B", test.nbytes, test.nbytes / codec.size)
        orders = {"in time order": np.arange(len(test)), "shuffled": np.random.default_rng(0).permutation(len(test))}
        for bound in BOUNDS:
            data = codec.encode(test, max_abs=bound)
            check_error(test, codec.decode(data), bound)
            ours = test.nbytes / len(data)
            for peer, code in peers.items():
                for order, rows in orders.items():
                    theirs = test.nbytes / code(test[rows], bound)
                    what = f"{where}, bound {bound:g}: our compression ratio; {peer}, rows {order}"
                    yield Row("bounds", what, ours, "", theirs, ours / theirs)


def load_peers() -> dict[str, Callable[[Array, float], int]]:
    """Return functions from rows (n, D) and a bound to the number of bytes, by peer. Raises InputError without them."""
    try:
        import blosc2
        import zfpy
    except ImportError as error:
        raise InputError(f"bench bounds needs {error.name}: pip install 'llgae[bench]'") from None

    def code_by_zfp(rows: Array, bound: float) -> int:
        sizes = []
        for layout in (rows, np.ascontiguousarray(rows.T)):
            data = zfpy.compress_numpy(layout, tolerance=bound)
            check_error(layout, zfpy.decompress_numpy(data), bound)
            sizes.append(len(data))
        return min(sizes)

    def code_by_blosc2(rows: Array, bound: float) -> int:
        whole, step = round_values(rows, bound)
        differences = np.diff(whole, axis=0, prepend=0)
        check_error(rows, step * np.cumsum(differences, axis=0), bound)
        return min(
            len(blosc2.compress2(layout, codec=blosc2.Codec.ZSTD, clevel=BLOSC_LEVEL, filters=[shuffle], typesize=4))
            for values in (whole, differences)
            for layout in (np.ascontiguousarray(values), np.ascontiguousarray(values.T))
            for shuffle in (blosc2.Filter.SHUFFLE, blosc2.Filter.BITSHUFFLE)
        )

    return {"zfp": code_by_zfp, "Blosc2": code_by_blosc2}


def round_values(rows: Array, bound: float) -> tuple[NDArray[np.int32], float]:
    """Return whole numbers and a step whose products are within `bound` of the rows, by float64 rounding too."""
    step = 2 * bound * (1 - 1e-9)
    return np.rint(rows / step).astype(np.int32), step


def split_stretches(states: Array) -> tuple[Array, Array]:
    """Return training and test rows: every fifth stretch of neighbouring rows is test."""
    stretch = np.arange(len(states)) // STRETCH
    return states[stretch % FOLDS != 0], states[stretch % FOLDS == 0]


def train_codec(train: Array, test: Array) -> Codec:
    """Return the codec of a model trained on `train` (n, D)."""
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in (("train", train), ("test", test)):
            np.save(Path(folder) / f"{name}.npy", rows)
        config = Config(
            task=f"npy:{folder}",
            model="llgae",
            K=K,
            embed_dim=min(E, train.shape[1]),
            trainer="closed-form",
            checkpoint_dir=Path(folder),
            scaling="none",
            figures=False,
        )
        outcome = experiment.train(config)
        assert outcome.checkpoint is not None  # None on further ranks of a distributed training, which this is not
        return Codec.load(outcome.checkpoint)


def check_error(rows: Array, decoded: NDArray[Any], bound: float) -> None:
    """Raise ArithmeticError where a value is off by more than the bound."""
    worst = float(np.abs(rows - decoded).max())
    if worst > bound:
        raise ArithmeticError(f"an error of {worst:g}, beyond the bound {bound:g}")
