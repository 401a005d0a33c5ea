"""Settings of a file: what is packed comes back, and impossible ones are refused."""

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llgae_cli.codec.density import make_weights
from llgae_cli.codec.exact import Step
from llgae_cli.codec.settings import MODES, PLAIN, SHIFTS, Corrections, Settings
from llgae_cli.errors import InputError

D = 5
MODE_WEIGHTS = make_weights(np.arange(MODES))
CORRECTIONS = Corrections(np.array([0.5]), np.arange(D) - 2, make_weights(np.arange(SHIFTS)))
FULL = Settings(Step(700, -3), 4, MODE_WEIGHTS, CORRECTIONS, 3.5, np.array([1.0, 2, 3, 4, 0.5]))


@given(
    mantissa=st.integers(512, 1023),
    exponent=st.integers(-899, 899),
    shift=st.integers(-128, 127),
    corrected=st.booleans(),
    max_l2=st.none() | st.floats(0, 1e300),
    max_abs=st.none() | st.sampled_from([1, D]),
)
def test_settings_come_back(
    mantissa: int, exponent: int, shift: int, corrected: bool, max_l2: float | None, max_abs: int | None
) -> None:
    bounded = corrected or max_l2 is not None or max_abs is not None
    settings = Settings(
        Step(mantissa, exponent),
        shift,
        MODE_WEIGHTS if bounded else PLAIN,
        CORRECTIONS if corrected else None,
        max_l2,
        None if max_abs is None else np.linspace(0, 2, max_abs),
    )
    back = Settings.unpack(settings.pack(), D)
    assert (back.step, back.scale_shift, back.max_l2) == (settings.step, shift, max_l2)
    assert np.array_equal(back.modes, settings.modes)
    if max_abs is not None:
        assert back.max_abs is not None and np.array_equal(back.max_abs, np.linspace(0, 2, max_abs))
    if corrected:
        assert back.corrections is not None
        for name in ("delta", "scale", "shifts"):
            assert np.array_equal(getattr(back.corrections, name), getattr(CORRECTIONS, name))
    assert back.is_bounded == (max_l2 is not None or max_abs is not None)


def test_a_plain_file_spends_six_bytes() -> None:
    assert len(Settings(Step(640, -2), -3).pack()) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"step": Step(511, 0)},
        {"step": Step(1024, 0)},
        {"step": Step(600, 900)},
        {"step": Step(600, -900)},
        {"modes": MODE_WEIGHTS + 1},
        {"modes": MODE_WEIGHTS * np.array([0] + [1] * (MODES - 1))},
        {"max_l2": float("nan")},
        {"max_l2": -1.0},
        {"max_abs": np.array([np.inf])},
        {"max_abs": np.array([-1.0])},
        {"max_abs": np.ones(D - 1)},
        {"corrections": replace(CORRECTIONS, delta=np.array([0.0]))},
        {"corrections": replace(CORRECTIONS, delta=np.full(D, np.nan))},
        {"corrections": replace(CORRECTIONS, delta=np.ones(2))},
        {"corrections": replace(CORRECTIONS, scale=np.zeros(D + 1))},
        {"corrections": replace(CORRECTIONS, shifts=CORRECTIONS.shifts - 1)},
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="its settings are damaged"):
        Settings.unpack(replace(FULL, **changes).pack(), D)


def test_damaged_settings_are_refused() -> None:
    packed = FULL.pack()
    spoilt = [packed[:cut] for cut in range(len(packed))]
    spoilt += [packed + b"\0", b"", struct.pack("<B", 0x28) + packed[1:], packed[:6] + zlib.compress(bytes(1 << 24))]
    for data in spoilt:
        with pytest.raises(InputError, match="its settings are damaged"):
            Settings.unpack(data, D)
