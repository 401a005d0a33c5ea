"""Hostile files whose checksums are right: random payloads and settings, mutated models. One line, or rows."""

import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coded import make_codec  # tests/coded.py
from hostile import Tally, mutate  # tests/hostile.py

from llgae_cli.codec.codec import Codec
from llgae_cli.codec.entropy_coder import CODER
from llgae_cli.codec.exact import Step
from llgae_cli.codec.settings import Settings
from llgae_cli.storage.compressed_file import CompressedFile, create_compressed
from llgae_cli.storage.compressed_header import Header

pytestmark = [pytest.mark.slow, pytest.mark.numeric]

N, D, BLOCK = 150, 12, 64
KINDS = ({"K": 4, "E": 3}, {"K": 3, "E": 0}, {"K": 3, "E": 2, "L": 2}, {"K": 2, "E": 2, "V": 4})
TYPES = ("bool", "uint8", "int16", "int64", "float16", "float32", "float64")


def sound(number: int) -> tuple[Codec, np.ndarray, Settings, list[bytes]]:
    """Return a codec, rows, settings and payloads; the number chooses them."""
    draw = np.random.default_rng(number)
    dtype = np.dtype(TYPES[number % len(TYPES)])
    rows = draw.integers(0, 2 if dtype.kind == "b" else 100, (N, D)).astype(dtype)
    codec = make_codec(rows, **KINDS[number % len(KINDS)], seed=number)
    target = ({"step": 9.0}, {"max_abs": 2.0}, {"max_l2": 0.01})[number % 3]
    chosen = codec.choose_settings(rows, **target)
    return codec, rows, chosen, codec.encode_blocks(rows, chosen, BLOCK)


def write(path: Path, codec: Codec, dtype: np.dtype, settings: bytes, model: bytes, payloads: list[bytes]) -> None:
    header = Header(N, (3, 4), dtype.name, codec.identity, True, CODER, settings, BLOCK, len(model))
    with create_compressed(path, header, model) as writer:
        for payload in payloads:
            writer.write(payload)


def read(path: Path) -> None:
    """Read a file as `llgae decompress` does, but for the identity of its model."""
    with CompressedFile(path) as file:
        header = file.header
        codec = Codec.unpack(file.read_model())
        if header.n_values != codec.D:
            return
        settings = Settings.unpack(header.settings, header.n_values)
        assert settings.step.value > 0
        for number in range(file.n_blocks):
            n = len(header.rows(number))
            x_hat = codec.decode_block(file.read_block(number), n, np.dtype(header.dtype), settings)
            assert x_hat.shape == (n, D) and x_hat.dtype == header.dtype
            assert header.dtype != "bool" or x_hat.view(np.uint8).max() <= 1


def spoil_settings(settings: Settings, draw: random.Random) -> bytes:
    """Return settings with extreme numbers in place of some, packed as sound ones are, or damaged bytes."""
    kind = draw.randrange(7)
    if kind == 0:
        return mutate(settings.pack(), draw)
    packed = settings.pack()
    if kind == 1:  # bytes that are compressed again after a change
        head, body = packed[:6], packed[6:]
        return head + (zlib.compress(mutate(zlib.decompress(body), draw)) if body else b"")
    if kind == 2:
        exponent = draw.choice((-32768, -900, -899, -40, 0, 40, 899, 900, 32767))
        head = struct.pack("<Hhb", draw.choice((511, 512, 1023, 1024)), exponent, draw.choice((-128, 0, 127)))
        return packed[:1] + head + packed[6:]
    step = Step(draw.randrange(512, 1024), draw.choice((-899, -300, -60, -20, 0, 20, 60, 300, 899)))
    settings = replace(settings, step=step, scale_shift=draw.choice((-128, -8, 0, 8, 127)))
    if settings.corrections is not None:
        delta = np.array([draw.choice((5e-324, 1e-300, 1e-9, 1.0, 1e9, 1e308))])
        scale = np.full(D, draw.choice((-32768, -30, 0, 240, 32767)))
        settings = replace(settings, corrections=replace(settings.corrections, delta=delta, scale=scale))
    return settings.pack()


def spoil_model(codec: Codec, draw: random.Random) -> bytes:
    """Return a packed model with changed bytes, half of the time within what is compressed."""
    packed = codec.pack()
    length = 5 + int.from_bytes(packed[1:5], "little")
    if draw.random() < 0.3:
        return mutate(packed, draw)
    if draw.random() < 0.3:
        return packed[:5] + mutate(packed[5:length], draw) + packed[length:]
    return packed[:length] + zlib.compress(mutate(zlib.decompress(packed[length:]), draw), 1)


@pytest.mark.parametrize("part", ["payloads", "settings", "models", "all"])
def test_hostile_files_are_refused_or_read(part: str, tmp_path: Path) -> None:
    draw, tally = random.Random(part), Tally()
    sounds = [sound(number) for number in range(12)]
    for number in range(500):
        codec, rows, settings, payloads = sounds[number % len(sounds)]
        packed, model = settings.pack(), codec.pack()
        if part == "payloads" or (part == "all" and draw.random() < 0.5):
            payloads = [
                draw.choice((mutate(own, draw), draw.randbytes(draw.randrange(200)), own)).rstrip(b"\0")
                for own in payloads
            ]
        if part == "settings" or (part == "all" and draw.random() < 0.5):
            packed = spoil_settings(settings, draw)
        if part == "models" or (part == "all" and draw.random() < 0.5):
            model = spoil_model(codec, draw)
        path = tmp_path / "x.llgae"
        write(path, codec, rows.dtype, packed, model or b"?", payloads)
        tally.attempt(lambda path=path: read(path), (part, number))
    assert int(tally) == 500 and tally.read >= 5 and tally.refused >= 50


def test_a_small_file_cannot_claim_a_large_model(tmp_path: Path) -> None:
    codec, rows, settings, payloads = sound(0)
    head = b'{"mu0":["<i4",[1,12]],"U0":["<i4",[1,12,40000000]],"bits0":["<i4",[1]]}'
    model = b"\x01" + len(head).to_bytes(4, "little") + head + zlib.compress(bytes(1 << 20))
    write(tmp_path / "x.llgae", codec, rows.dtype, settings.pack(), model, payloads)
    tally = Tally()
    tally.attempt(lambda: read(tmp_path / "x.llgae"), "a model of 2 GB")
    assert tally.refused == 1
