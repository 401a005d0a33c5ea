"""The rows that benchmarks yield."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Coding:
    """What a point of a rate-distortion curve took. Sizes are in bytes, times in seconds.

    method          name of the curve
    setting         what is varied along the curve
    train_rows      training rows that the model has seen; 0 where nothing is trained
    model_bytes     size of the model, which the rate does not count
    train_seconds   time to train the model; coders that share a model have the same
    code_seconds    time to code all test rows
    decode_seconds  time to decode them
    """

    method: str
    setting: str
    train_rows: int
    model_bytes: int
    train_seconds: float
    code_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` compares `value` with `against`, where both are comparable; units are SI."""

    bench: str
    what: str
    value: float
    unit: str
    against: float | None = None
    ratio: float | None = None
    at: float | None = None  # the abscissa, where the benchmark is a curve
    coding: Coding | None = None  # of `rate`: `value` is the mean squared error, `at` the bits a sample
