"""Compressed files: what comes out is what went in or an error in one line, whatever happened to the bytes."""

import bisect
import io
import itertools
import os
import random
import struct
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from hostile import Tally, cut, mutate, put, watched  # tests/hostile.py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llgae_cli.errors import InputError
from llgae_cli.storage.compressed_file import (
    TRAILER,
    TRAILER_MAGIC,
    CompressedFile,
    CompressedWriter,
    compute_check,
    create_compressed,
    header_checksum,
    number_of,
)
from llgae_cli.storage.compressed_header import Header, pack_varint, read_header
from llgae_cli.storage.salvage import Salvage

HEADER = Header(
    n=100,
    shape=(4, 3),
    dtype="uint8",
    identity=bytes(range(16)),
    exact=True,
    coder="constriction 0.5.0",
    settings=b"some settings",
    block_rows=8,
)


def payloads_of(header: Header, seed: int = 1, longest: int = 60) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(draw.randrange(longest)) for _ in range(header.n_blocks)]


def pack(header: Header, payloads: list[bytes], model: bytes = b"") -> bytes:
    file = io.BytesIO()
    with CompressedWriter(file, header, model) as writer:
        for payload in payloads:
            writer.write(payload)
    assert writer.sizes is not None and writer.sizes.total == len(file.getvalue())
    return file.getvalue()


def read_all(file: CompressedFile) -> list[bytes]:
    return [file.read_block(number) for number in range(file.n_blocks)]


class Pipe(io.RawIOBase):
    """What a pipe is to a reader: no places, and fewer bytes than it asked for."""

    def __init__(self, raw: bytes) -> None:
        self.file = io.BytesIO(raw)

    def readable(self) -> bool:
        return True

    def readinto(self, room: bytearray) -> int:  # type: ignore[override]
        part = self.file.read(min(len(room), 7))
        room[: len(part)] = part
        return len(part)


def pipe(raw: bytes) -> BinaryIO:
    return io.BufferedReader(Pipe(raw))


headers = st.builds(
    Header,
    n=st.integers(0, 70),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    dtype=st.sampled_from(("bool", "uint8", "uint16", "int64", "float16", "float32", "float64")),
    identity=st.binary(min_size=16, max_size=16),
    exact=st.booleans(),
    coder=st.text(st.characters(codec="ascii"), max_size=64),
    settings=st.binary(max_size=300),
    block_rows=st.integers(1, 30),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(header=headers, model=st.binary(max_size=200), data=st.data())
def test_what_was_written_is_read_from_files_and_pipes(header: Header, model: bytes, data: st.DataObject) -> None:
    payloads = [data.draw(st.binary(max_size=300)) for _ in range(header.n_blocks)]
    raw = pack(header, payloads, model)
    for source in (io.BytesIO(raw), pipe(raw)):
        with CompressedFile(source) as file:
            assert file.header == replace(header, model_bytes=len(model))
            assert read_all(file) == payloads
            if model:
                assert file.read_model() == model
            if header.n:
                assert file.sizes is not None and file.sizes.total == len(raw)
                assert file.sizes.blocks == sum(map(len, payloads))


@pytest.mark.parametrize("longest", [100, 16_000])
def test_overhead_is_at_most_120_bytes_and_10_a_block(longest: int) -> None:
    header = replace(HEADER, n=1_000_000, shape=(28, 28), block_rows=256, settings=bytes(20))
    payloads = [b"x" * longest] * header.n_blocks
    beside = len(pack(header, payloads)) - sum(map(len, payloads))
    assert len(header.pack()) <= 120
    assert beside <= len(header.pack()) + TRAILER.size + 10 * header.n_blocks


def test_any_row_costs_a_few_reads(tmp_path: Path) -> None:
    header = replace(HEADER, n=1_000_000, block_rows=256)
    payloads = [struct.pack("<I", number) * 9 for number in range(header.n_blocks)]
    with CompressedFile(put(tmp_path / "x.llgae", pack(header, payloads))) as file:
        for row in (0, 255, 256, 777_777, 999_999):
            block, place = file.locate(row)
            assert block * 256 + place == row and row in file.header.rows(block)
            assert file.read_block(block) == payloads[block]
        for row in (-1, 1_000_000):
            with pytest.raises(InputError, match=r"has no row -?\d+; it has 1000000"):
                file.locate(row)


def test_a_pipe_is_read_in_order_only() -> None:
    payloads = payloads_of(HEADER)
    file = CompressedFile(pipe(pack(HEADER, payloads, b"model")))
    assert file.read_block(3) == payloads[3] and file.read_block(5) == payloads[5]
    assert file.read_model() == b"model"
    with pytest.raises(InputError, match="past"):
        file.read_block(2)


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    payloads = payloads_of(HEADER)
    os.mkfifo(tmp_path / "fifo")
    raw = pack(HEADER, payloads)
    holder = os.open(tmp_path / "fifo", os.O_RDWR)  # so that neither end waits for the other

    def write() -> None:
        os.write(holder, raw)

    thread = threading.Thread(target=write)
    thread.start()
    with CompressedFile(tmp_path / "fifo") as file:
        read = [file.read_block(number) for number in range(file.n_blocks - 1)]
        thread.join()
        os.close(holder)
        assert [*read, file.read_block(file.n_blocks - 1)] == payloads


def test_the_writer_counts_blocks_and_leaves_no_half_file(tmp_path: Path) -> None:
    path = tmp_path / "x.llgae"
    with pytest.raises(ValueError, match="12 blocks; 100 rows have 13"), create_compressed(path, HEADER) as writer:
        for _ in range(12):
            writer.write(b"")
    with pytest.raises(ValueError, match="another one came"), create_compressed(path, HEADER) as writer:
        for _ in range(14):
            writer.write(b"")
    with pytest.raises(ValueError, match="are allowed"), create_compressed(path, HEADER) as writer:
        writer.write(bytes(HEADER.longest_payload + 1))
    assert list(tmp_path.iterdir()) == []
    with create_compressed(path, HEADER) as writer:
        for payload in payloads_of(HEADER):
            writer.write(payload)
    assert path.read_bytes() == pack(HEADER, payloads_of(HEADER))


@pytest.mark.parametrize(
    "field",
    [
        {"dtype": "object"},
        {"dtype": "complex64"},
        {"shape": ()},
        {"shape": (0, 3)},
        {"shape": (1,) * 9},
        {"shape": (1 << 40,)},
        {"n": -1},
        {"n": 1 << 60},
        {"n": 1 << 47, "block_rows": 1},
        {"block_rows": 0},
        {"block_rows": 1 << 29},
        {"identity": bytes(15)},
        {"coder": "x" * 65},
        {"coder": "é"},
        {"settings": bytes((1 << 20) + 1)},
    ],
    ids=str,
)
def test_a_header_beyond_the_format_is_not_written(field: dict[str, object]) -> None:
    with pytest.raises(InputError):
        CompressedWriter(io.BytesIO(), replace(HEADER, **field))  # type: ignore[arg-type]


# ---- Damage


@pytest.fixture(scope="module")
def whole() -> tuple[bytes, list[bytes]]:
    payloads = payloads_of(HEADER)
    return pack(HEADER, payloads, b"the model"), payloads


def read_or_refuse(raw: bytes, payloads: list[bytes], where: str = "x") -> bool:
    """Whether the bytes are read as the payloads; False for an InputError, and a failure for anything else."""
    try:
        with CompressedFile(io.BytesIO(raw), where) as file:
            read = read_all(file)
            model = file.read_model()
    except InputError:
        return False
    assert (read, model) == (payloads, b"the model")
    return True


def salvage_path(path: Path) -> dict[int, bytes]:
    with Salvage(path) as salvage:
        return {block.number: block.payload for block in salvage.blocks() if block.payload is not None}


def test_every_cut_is_noticed_and_intact_blocks_are_salvaged(tmp_path: Path, whole: tuple[bytes, list[bytes]]) -> None:
    raw, payloads = whole
    header_bytes = len(replace(HEADER, model_bytes=9).pack())
    for part in itertools.chain(cut(raw), (raw[:-1], raw[:-16], raw[:-17])):
        assert not read_or_refuse(part, payloads)
        with pytest.raises(InputError):
            file = CompressedFile(pipe(part))
            read_all(file)
        path = put(tmp_path / "x", part)
        if len(part) < header_bytes:
            with pytest.raises(InputError):
                Salvage(path)
            continue
        found = salvage_path(path)
        complete = [number for number in range(len(payloads)) if end_of(raw, payloads, number) <= len(part)]
        assert found == {number: payloads[number] for number in complete}


def end_of(raw: bytes, payloads: list[bytes], number: int) -> int:
    """Where a block of the file ends; -1: where the first begins."""
    begin = len(replace(HEADER, model_bytes=9).pack()) + 9 + 4
    return begin + sum(5 + len(pack_varint(len(each))) + len(each) for each in payloads[: number + 1])


@pytest.mark.slow
def test_every_wrong_byte_is_noticed_and_costs_one_block(tmp_path: Path, whole: tuple[bytes, list[bytes]]) -> None:
    raw, payloads = whole
    ends = [end_of(raw, payloads, number) for number in range(-1, len(payloads))]
    for at, flip in itertools.product(range(len(raw)), (0x01, 0x80, 0xFF)):
        wrong = bytearray(raw)
        wrong[at] ^= flip
        assert not read_or_refuse(bytes(wrong), payloads), at
        if at < ends[0] - 13:  # the header, without which there is nothing to salvage
            continue
        hit = bisect.bisect_right(ends, at) - 1  # len(payloads) where it is behind the blocks
        found = salvage_path(put(tmp_path / "x", bytes(wrong)))
        assert found == {number: payload for number, payload in enumerate(payloads) if number != hit}, at


def test_a_damaged_block_costs_only_its_rows_and_is_named(tmp_path: Path, whole: tuple[bytes, list[bytes]]) -> None:
    raw, payloads = whole
    wrong = bytearray(raw)
    wrong[end_of(raw, payloads, 4) - 1] ^= 4
    with CompressedFile(put(tmp_path / "data.llgae", bytes(wrong))) as file:
        assert file.read_block(3) == payloads[3] and file.read_block(5) == payloads[5]
        with pytest.raises(InputError, match=r"data.llgae: block 4, rows 32..39: the checksum does not match"):
            file.read_block(4)


def test_swapped_blocks_are_noticed_and_put_in_order(tmp_path: Path) -> None:
    payloads = [bytes([number]) * 20 for number in range(HEADER.n_blocks)]
    raw = pack(HEADER, payloads)
    size = 26
    begin = len(HEADER.pack())
    a, b = begin + 2 * size, begin + 9 * size
    swapped = raw[:a] + raw[b : b + size] + raw[a + size : b] + raw[a : a + size] + raw[b + size :]
    path = put(tmp_path / "x", swapped)
    with CompressedFile(path) as file, pytest.raises(InputError, match="block 9 is in its place"):
        file.read_block(2)
    assert salvage_path(path) == dict(enumerate(payloads))


def test_blocks_of_a_file_with_another_header_are_refused() -> None:
    payloads = payloads_of(HEADER)
    raw, other = pack(HEADER, payloads), pack(replace(HEADER, settings=b"other settings"), payloads)
    header = len(HEADER.pack())
    spliced = raw[:header] + other[header + 1 :]
    assert not read_or_refuse(spliced, payloads)


def test_salvage_skips_foreign_bytes_and_repeated_blocks(tmp_path: Path) -> None:
    payloads = payloads_of(HEADER, longest=3000)
    raw = pack(HEADER, payloads)
    begin, draw = len(HEADER.pack()), random.Random(3)
    third = begin + sum(5 + len(pack_varint(len(each))) + len(each) for each in payloads[:3])
    noisy = raw[:third] + draw.randbytes(50_000) + raw[begin:third] + b"\xb7" * 5000 + raw[third:]
    assert salvage_path(put(tmp_path / "x", noisy)) == dict(enumerate(payloads))


def test_salvage_says_what_is_lost(tmp_path: Path) -> None:
    payloads = [b"abc"] * HEADER.n_blocks
    raw = bytearray(pack(HEADER, payloads))
    begin = len(HEADER.pack())
    raw[begin + 9 * 2 + 8] ^= 1
    with Salvage(put(tmp_path / "x", bytes(raw[: begin + 9 * 6]))) as salvage:
        blocks = list(salvage.blocks())
        assert salvage.header == HEADER and salvage.n_found == 5
    assert [block.number for block in blocks if block.payload is None] == [2, *range(6, 13)]
    assert blocks[2].reason == "damaged or missing" and "cut short" in blocks[7].reason


# ---- Hostile files


def forged(body_changes: Callable[[bytes], bytes], raw: bytes) -> bytes:
    """The file with another body of its header, and a correct checksum of that."""
    _, packed = read_header(io.BytesIO(raw))
    length = len(pack_varint(len(packed) - 9 - 1 - 4))
    body = body_changes(packed[9 + length : -4])
    made = packed[:9] + pack_varint(len(body)) + body
    return made + zlib.crc32(made).to_bytes(4, "little") + raw[len(packed) :]


def claim(header: Header) -> bytes:
    """A header with fields that `check` would refuse."""
    object.__setattr__(header, "check", lambda: None)
    return header.pack()


@pytest.mark.parametrize(
    "field",
    [
        {"n": 10**12},
        {"n": 10**12, "block_rows": 1},
        {"n": (1 << 63) - 1},
        {"n": 101, "block_rows": 1},
        {"n": 50},
        {"shape": (1 << 62, 1 << 62)},
        {"shape": ((1 << 28) - 1,), "block_rows": 1},
        {"shape": (1,) * 30},
        {"shape": (0,)},
        {"block_rows": 0},
        {"model_bytes": 1 << 50},
        {"model_bytes": 1000},
    ],
    ids=str,
)
def test_claims_of_a_header_cost_nothing(tmp_path: Path, field: dict[str, object]) -> None:
    raw = pack(HEADER, payloads_of(HEADER))
    lie = claim(replace(HEADER, **field)) + raw[len(HEADER.pack()) :]  # type: ignore[arg-type]
    tally = Tally()
    path = put(tmp_path / "x", lie)
    tally.attempt(lambda: read_all(CompressedFile(path)), field)
    tally.attempt(lambda: read_all(CompressedFile(pipe(lie))), field)
    assert tally.refused == 2
    tally.attempt(lambda: salvage_path(path), field)


def test_an_index_that_disagrees_is_refused() -> None:
    payloads = payloads_of(HEADER)
    raw = pack(HEADER, payloads)
    seed = header_checksum(HEADER.pack())
    length = TRAILER.unpack(raw[-TRAILER.size :])[0]
    blocks = raw[: -TRAILER.size - length]
    lengths = [len(payload) for payload in payloads]
    lies = [
        lengths[:-1],
        [*lengths, 0],
        [lengths[0] + 1, lengths[1] - 1, *lengths[2:]],
        [*lengths[:-1], lengths[-1] + 1],
        [*lengths[:-1], 1 << 62],
        [0] * len(lengths),
    ]
    for lie in lies:
        index = b"".join(map(pack_varint, lie))
        end = TRAILER.pack(len(index), zlib.crc32(index, seed), TRAILER_MAGIC)
        assert not read_or_refuse(blocks + index + end, payloads), lie
    for length in (0, len(raw), 1 << 40, (1 << 64) - 1):
        end = TRAILER.pack(length, 0, TRAILER_MAGIC)
        assert not read_or_refuse(raw[: -TRAILER.size] + end, payloads), length


@pytest.mark.slow
def test_two_thousand_hostile_files(tmp_path: Path) -> None:
    draw, tally = random.Random(15), Tally()
    payloads = payloads_of(HEADER)
    raw = pack(HEADER, payloads, b"the model")
    other = pack(replace(HEADER, n=99, dtype="float64"), payloads_of(HEADER, 2), b"another")
    ends = [end_of(raw, payloads, number) for number in range(-1, len(payloads))]
    records = [raw[begin:end] for begin, end in itertools.pairwise(ends)]
    for number in range(2000):
        wrong = mutate(raw, draw, other) if number % 4 else forged(lambda body: mutate(body, draw), raw)
        path = put(tmp_path / "x", wrong)
        header_is_there = wrong.startswith(raw[: len(replace(HEADER, model_bytes=9).pack())])

        def read(path: Path = path, sound: bool = header_is_there) -> None:
            with CompressedFile(path) as file:
                read = read_all(file)
                if sound:
                    assert read == payloads

        def salvage(path: Path = path, sound: bool = header_is_there) -> None:
            found = salvage_path(path)
            if sound:
                there = path.read_bytes()
                assert found == {number: payloads[number] for number, record in enumerate(records) if record in there}

        tally.attempt(read, number)
        tally.attempt(salvage, number)
    assert int(tally) == 4000 and tally.slowest < 5
    assert tally.refused > 2000


@pytest.mark.slow
def test_a_file_made_to_be_searched_for_long_is_given_up(tmp_path: Path) -> None:
    header = replace(HEADER, shape=(1 << 14,), dtype="float64", block_rows=64)
    decoy = b"\xb7" + pack_varint(1 << 20) + b"\xb7" * 3
    path = put(tmp_path / "x", header.pack() + decoy * 300_000)
    with watched():
        assert salvage_path(path) == {}


def test_checks_tell_numbers_apart() -> None:
    for number in (0, 1, 2, 1000, (1 << 30) - 1):
        check = compute_check(number, b"\x03", b"abc", 77)
        crc = compute_check(0, b"\x03", b"abc", 77)
        assert number_of(check, crc) == number
        assert all(number_of(check ^ 1 << bit, crc) >= 1 << 10 for bit in range(32) if number < 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04" + bytes(100), "not a file of `llgae compress`"),
        (b"\x89LLGAE\r\n", "cut short within its header"),
        (b"\x89LLGAE\n\n" + bytes(100), "not a file"),
        (b"\x89LLGAE\r\n\x02" + bytes(100), "version 2 of the format; this llgae reads version 1"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    for read in (CompressedFile, Salvage):
        with pytest.raises(InputError, match=words):
            read(put(tmp_path / "x", content))


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("a\0b"), Path("/dev/null")):
        with pytest.raises(InputError):
            CompressedFile(path)
