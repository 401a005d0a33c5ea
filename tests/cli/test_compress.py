"""`llgae compress`, `decompress` and `info`: rows come back in their type and shape, or one line says why not."""

import io
import json
import os
import struct
import sys
import threading
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
from command_line import Command, Said, check_refused  # tests/command_line.py

import llgae_cli
from llgae_cli.errors import InputError
from llgae_cli.storage import compressed_header
from llgae_cli.storage.compressed_file import CompressedFile, create_compressed
from llgae_cli.tasks import load_task

pytestmark = pytest.mark.numeric


# ---- A codec that rounds values to multiples of a step, in place of llgae's own


@dataclass(frozen=True)
class FakeStep:
    value: float


@dataclass(frozen=True)
class FakeSettings:
    step: FakeStep
    max_l2: float | None = None
    max_abs: np.ndarray | None = None

    def pack(self) -> bytes:
        return struct.pack("<d", self.step.value)

    @staticmethod
    def unpack(raw: bytes, D: int) -> "FakeSettings":
        if len(raw) != 8:
            raise InputError("damaged settings")
        return FakeSettings(FakeStep(*struct.unpack("<d", raw)))


class FakeCodec:
    def __init__(self, D: int, identity: bytes) -> None:
        self.D, self.identity, self.size, self.unit = D, identity, 24, 1.0

    @staticmethod
    def load(path: Path) -> "FakeCodec":
        from llgae_cli.factory import restore
        from llgae_cli.storage.codes import fingerprint

        model, _, _ = restore(path)
        return FakeCodec(model.D, fingerprint(model).encode())

    @staticmethod
    def unpack(raw: bytes) -> "FakeCodec":
        return FakeCodec(int.from_bytes(raw[:8], "little"), raw[8:])

    def pack(self) -> bytes:
        return self.D.to_bytes(8, "little") + self.identity

    def choose_settings(self, sample: np.ndarray, **target: Any) -> FakeSettings:
        ((name, value),) = target.items()
        value = float(np.min(value))
        steps = {"bits": 64 / value, "step": value, "max_l2": 2 * value**0.5, "max_abs": 2 * value, "lossless": 0}
        return FakeSettings(FakeStep(steps[name]))

    def code_blocks(
        self, x: np.ndarray, settings: FakeSettings, block_rows: int = 256
    ) -> tuple[list[bytes], np.ndarray]:
        assert x.ndim == 2 and x.shape[1] == self.D
        step = settings.step.value
        q = np.rint(x / step).astype(np.int32) if step else x
        starts = range(0, len(x), block_rows)
        payloads = [zlib.compress(q[start : start + block_rows].tobytes()) for start in starts]
        parts = [
            self.decode_block(payload, len(x[start : start + block_rows]), x.dtype, settings)
            for payload, start in zip(payloads, starts, strict=True)
        ]
        return payloads, np.concatenate(parts)

    def decode_block(self, payload: bytes, n_rows: int, dtype: np.dtype[Any], settings: FakeSettings) -> np.ndarray:
        try:
            raw = zlib.decompress(payload)
        except zlib.error:
            raise InputError("an impossible symbol") from None
        if not settings.step.value:
            return np.frombuffer(raw, dtype).reshape(n_rows, self.D)
        x_hat = np.frombuffer(raw, np.int32).reshape(n_rows, self.D) * settings.step.value
        if dtype.kind != "f":
            x_hat = np.clip(np.rint(x_hat), np.iinfo(dtype).min, np.iinfo(dtype).max)
        return x_hat.astype(dtype)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in files of a few hundred rows."""
    monkeypatch.setattr(compressed_header, "BLOCK_ROWS", 256)


@pytest.fixture(autouse=True)
def fake_codec(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    contents = {"": {}, ".codec": {"Codec": FakeCodec}, ".settings": {"Settings": FakeSettings}}
    contents[".entropy_coder"] = {"CODER": "zlib 1"}
    for name, names in contents.items():
        module = types.ModuleType(f"llgae_cli.codec{name}")
        vars(module).update(names, __path__=[])
        monkeypatch.setitem(sys.modules, f"llgae_cli.codec{name}", module)
    held = take_batch_modules()  # they import the codec, and so are imported anew, before a test and after it
    yield
    take_batch_modules()
    sys.modules.update(held)
    if "llgae_cli.batch" in held:
        llgae_cli.batch = held["llgae_cli.batch"]


def take_batch_modules() -> dict[str, types.ModuleType]:
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("llgae_cli.batch")}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the task subspaces: 1,000 test rows of 8 x 8 float32."""
    return pictured.train(tmp_path_factory.mktemp("compressed"))


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 600 images of 6 x 9 x 3 bytes in a file colours.npy next to it."""
    folder = tmp_path_factory.mktemp("coloured")
    return pictured.train(folder, task=pictured.colours(folder, 600))


def printed(said: Said) -> Any:
    assert said.code == 0, said.err
    return json.loads(said.out)


# ---- Round trips


@pytest.mark.parametrize(("option", "value"), [("--bits", 200), ("--step", 1), ("--max-l2", 0.5), ("--max-abs", 0.5)])
def test_rows_come_back_as_near_as_was_printed(llgae: Command, checkpoint: Path, option: str, value: float) -> None:
    made = printed(llgae("compress", checkpoint, "-o", "x.llgae", option, value, "--verify", "--json"))
    back = printed(llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy", "--json"))
    x = load_task("subspaces", Path("data"), "none").test.stored_rows().numpy()
    x_hat = np.load("x.npy")
    assert x_hat.shape == (1000, 8, 8) and x_hat.dtype == np.float32
    error = np.square(x.astype(np.float64) - x_hat.reshape(1000, -1).astype(np.float64))
    assert made["mean_squared_error"] == pytest.approx(error.mean(), rel=1e-9)
    assert made["largest_row_error"] == pytest.approx(error.mean(1).max(), rel=1e-9)
    assert made["largest_value_error"] == pytest.approx(np.sqrt(error.max()), rel=1e-9)
    assert made["bytes"] == sum(made["sizes"].values()) == Path("x.llgae").stat().st_size
    assert made["bits_per_row"] == 8 * made["bytes"] / 1000 and made["verified"]
    assert (back["n"], back["shape"], back["dtype"], back["lost"]) == (1000, [8, 8], "float32", [])


def test_each_variable_may_have_its_own_bound(
    llgae: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds = [1.0] * 63 + [0.25]
    made = llgae("compress", checkpoint, "-o", "x.llgae", "--max-abs", ",".join(map(str, bounds)))
    assert made.code == 0 and "largest of a value 0.25" in made.out
    monkeypatch.setattr(FakeCodec, "choose_settings", lambda self, sample, max_abs: FakeSettings(FakeStep(2.0)))
    made = llgae("compress", checkpoint, "-o", "y.llgae", "--max-abs", ",".join(map(str, bounds)))
    assert made.code == 1 and "beyond the bound" in made.err


def test_bits_are_those_of_the_whole_file(llgae: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def choose(self: FakeCodec, sample: np.ndarray, bits: float) -> FakeSettings:
        asked.append((bits, len(sample)))
        return FakeSettings(FakeStep(1.0))

    monkeypatch.setattr(FakeCodec, "choose_settings", choose)
    made = printed(llgae("compress", checkpoint, "-o", "x.llgae", "--bits", 80, "--json"))
    (bits, n), sizes = asked[0], made["sizes"]
    around = 8 * (sizes["header"] + sizes["index"]) / 1000
    assert n == 1000 and 0 <= 80 - bits - around < 0.5


def test_info_prints_what_compress_printed(llgae: Command, coloured: Path) -> None:
    made = printed(llgae("compress", coloured, "-o", "x.llgae", "--max-abs", 3, "--split", "test", "--json"))
    told = printed(llgae("info", "x.llgae", "--json"))
    for key in ("n", "shape", "dtype", "bytes", "bits_per_row", "sizes", "identity"):
        assert told[key] == made[key]
    assert (told["n"], told["shape"], told["dtype"]) == (60, [6, 9, 3], "uint8")
    assert told["settings"] == {"step": 6.0} and told["coder"] == "zlib 1" and told["exact"]
    plain = llgae("info", "x.llgae")
    assert (
        plain.code == 0 and made["identity"] in plain.out and "60, each 6 x 9 x 3 uint8; 1 blocks of 256" in plain.out
    )


def test_lossless_is_the_same_bytes(llgae: Command, coloured: Path) -> None:
    assert llgae("compress", coloured, "-o", "x.llgae", "--lossless", "--verify", "--split", "all").code == 0
    assert llgae("decompress", coloured, "x.llgae", "-o", "x.npy").code == 0
    back, x = np.load("x.npy"), np.load(coloured.parent / "colours.npy")
    assert back.dtype == np.uint8 and np.array_equal(back, x)


def test_all_of_a_task_is_train_then_test(llgae: Command, checkpoint: Path) -> None:
    assert llgae("compress", checkpoint, "-o", "x.llgae", "--lossless", "--split", "all").code == 0
    assert llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy").code == 0
    task = load_task("subspaces", Path("data"), "none")
    x = np.concatenate([part.stored_rows().numpy() for part in (task.train, task.test)])
    assert np.array_equal(np.load("x.npy").reshape(len(x), -1), x)


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint16", "float16", "float64"])
def test_every_type_comes_back_in_its_own(llgae: Command, checkpoint: Path, dtype: str) -> None:
    x = np.random.default_rng(5).integers(0, 2 if dtype == "bool" else 30_000, (300, 4, 16)).astype(dtype)
    np.save("own.npy", x)
    done = llgae("compress", checkpoint, "--task", "npy:own.npy", "-o", "x.llgae", "--lossless")
    assert done.code == 0, done.err
    assert llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy").code == 0
    assert np.load("x.npy").dtype == x.dtype and np.array_equal(np.load("x.npy"), x)


def test_some_rows_are_those_of_the_whole(llgae: Command, checkpoint: Path) -> None:
    llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1)
    llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy")
    whole = np.load("x.npy")
    for text, rows in (("0:1", slice(0, 1)), ("250:600", slice(250, 600)), ("256:512", slice(256, 512)),
                       ("999:", slice(999, None)), (":300", slice(300)), (":", slice(None))):  # fmt: skip
        assert llgae("decompress", checkpoint, "x.llgae", "-o", "part.npy", "--rows", text).code == 0
        assert np.array_equal(np.load("part.npy"), whole[rows])


@pytest.mark.parametrize(
    "text", ["", "3", "5:5", "6:5", "0:1001", "1000:", "-3:5", "a:b", "1:2:3", "9" * 30 + ":", "١:٢"]
)
def test_impossible_rows_are_refused(llgae: Command, checkpoint: Path, text: str) -> None:
    llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1)
    check_refused(llgae("decompress", checkpoint, "x.llgae", "-o", "part.npy", "--rows", text), "--rows")
    assert not Path("part.npy").exists()


# ---- Models


def test_an_embedded_model_needs_no_checkpoint(llgae: Command, checkpoint: Path) -> None:
    made = printed(llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1, "--embed-model", "--json"))
    assert made["sizes"]["model"] == 24 + 4 and printed(llgae("info", "x.llgae", "--json"))["embedded_model"]
    assert llgae("decompress", "x.llgae", "-o", "a.npy").code == 0
    assert llgae("decompress", checkpoint, "x.llgae", "-o", "b.npy").code == 0
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()


def test_a_file_without_its_model_is_refused(llgae: Command, checkpoint: Path, coloured: Path) -> None:
    made = printed(llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1, "--json"))
    check_refused(llgae("decompress", "x.llgae", "-o", "x.npy"), "holds no model", "give the checkpoint")
    other = llgae("decompress", coloured, "x.llgae", "-o", "x.npy")
    check_refused(other, "x.llgae: was made by the model with identity", made["identity"], coloured.name)
    check_refused(llgae("decompress", checkpoint, "x.llgae", "y", "-o", "x.npy"), "3 files")
    assert not Path("x.npy").exists()


def test_rows_of_another_width_are_refused(llgae: Command, checkpoint: Path) -> None:
    np.save("wide.npy", np.zeros((20, 65)))
    said = llgae("compress", checkpoint, "--task", "npy:wide.npy", "-o", "x.llgae", "--step", 1)
    check_refused(said, "rows of 65 values; the model's have 64")


# ---- Wrong usage


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("give one of --bits, --step, --max-l2, --max-abs and --lossless",)),
        (("--bits", 80, "--step", 1), ("give one of",)),
        (("--step", 1, "--lossless"), ("give one of",)),
        (("--bits", 0), ("--bits 0", "positive")),
        (("--bits", 0.5), ("bits 0.5", "header, the index and the checks alone take 1.09 bits a row")),
        (("--max-l2", "nan"), ("--max-l2 nan", "positive")),
        (("--max-abs", "inf"), ("--max-abs inf", "positive")),
        (("--max-abs", "1,x"), ("--max-abs 1,x", "positive")),
        (("--max-abs", "1,2,3"), ("--max-abs: 3 numbers; 1 or 64",)),
        (("--step", -3), ("--step -3", "positive")),
        (("--step", 1, "-o", "x.npz"), ("x.npz", "a .llgae file")),
        (("--step", 1, "-o", "-", "--json"), ("--json",)),
        (("--step", 1, "-o", "-", "--verify"), ("--verify",)),
    ],
)
def test_wrong_options_of_compress_are_refused(
    llgae: Command, checkpoint: Path, options: tuple[object, ...], words: tuple[str, ...]
) -> None:
    output = () if "-o" in options else ("-o", "x.llgae")
    check_refused(llgae("compress", checkpoint, *output, *options), *words)
    assert not Path("x.llgae").exists()


def test_files_of_another_kind_are_refused(llgae: Command, checkpoint: Path) -> None:
    Path("x.llgae").write_bytes(b"no such thing")
    check_refused(llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy"), "not a file of `llgae compress`")
    check_refused(llgae("info", "x.llgae"), "not a file of `llgae compress`")
    check_refused(llgae("info", "missing.llgae"), "no such file")
    check_refused(llgae("decompress", checkpoint, "x.llgae", "-o", "x.txt"), "a .npy file")
    check_refused(llgae("decompress", checkpoint, "-", "-o", "x.npy", "--salvage"), "--salvage")


def test_impossible_settings_and_symbols_are_refused(llgae: Command, checkpoint: Path) -> None:
    llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1)
    with CompressedFile(Path("x.llgae")) as file:
        header, payloads = file.header, [file.read_block(number) for number in range(file.n_blocks)]
    object.__setattr__(header, "settings", b"bad")
    write(Path("settings.llgae"), header, payloads)
    check_refused(llgae("decompress", checkpoint, "settings.llgae", "-o", "x.npy"), "settings.llgae: damaged settings")
    check_refused(llgae("info", "settings.llgae"), "settings.llgae: damaged settings")
    object.__setattr__(header, "settings", FakeSettings(FakeStep(1.0)).pack())
    write(Path("symbols.llgae"), header, [*payloads[:2], b"no symbols", *payloads[3:]])
    said = llgae("decompress", checkpoint, "symbols.llgae", "-o", "x.npy")
    check_refused(said, "symbols.llgae: block 2, rows 512..767: an impossible symbol")
    assert not Path("x.npy").exists()
    back = printed(llgae("decompress", checkpoint, "symbols.llgae", "-o", "x.npy", "--salvage", "--json"))
    assert back["lost"] == [{"first": 512, "last": 767, "reason": "an impossible symbol"}]


def write(path: Path, header: Any, payloads: list[bytes]) -> None:
    with create_compressed(path, header) as writer:
        for payload in payloads:
            writer.write(payload)


# ---- Promises that are checked


def off_by(error: float, from_call: int) -> Callable[..., np.ndarray]:
    decode, calls = FakeCodec.decode_block, iter(range(1000))

    def wrong(self: FakeCodec, *arguments: Any) -> np.ndarray:
        x_hat = decode(self, *arguments)
        return (x_hat + x_hat.dtype.type(error)) if next(calls) >= from_call else x_hat

    return wrong


@pytest.mark.parametrize("option", ["--max-l2", "--max-abs", "--lossless"])
def test_a_codec_that_breaks_its_bound_writes_no_file(
    llgae: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    Path("x.llgae").write_bytes(b"older")
    monkeypatch.setattr(FakeCodec, "decode_block", off_by(7, 1))
    value = () if option == "--lossless" else (2,)
    said = llgae("compress", checkpoint, "-o", "x.llgae", option, *value)
    assert said.code == 1 and "row 256 decodes with an error beyond the bound" in said.err and said.out == ""
    assert Path("x.llgae").read_bytes() == b"older" and not list(Path().glob(".tmp*"))


def test_verify_notices_a_file_that_decodes_differently(
    llgae: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeCodec, "decode_block", off_by(0.001, 6))  # four blocks, then verification
    said = llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1, "--verify")
    assert said.code == 1 and "decodes to other values than before it was written" in said.err
    assert not Path("x.llgae").exists()


# ---- Damage


def test_a_damaged_file_is_refused_and_salvaged(llgae: Command, checkpoint: Path) -> None:
    made = printed(llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1, "--json"))
    llgae("decompress", checkpoint, "x.llgae", "-o", "whole.npy")
    raw, whole = bytearray(Path("x.llgae").read_bytes()), np.load("whole.npy")
    with CompressedFile(Path("x.llgae")) as file:
        second = raw.find(file.read_block(1))
    raw[second + 5] ^= 1
    Path("x.llgae").write_bytes(raw)
    Path("x.npy").write_bytes(b"older")
    said = llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy")
    check_refused(said, "x.llgae: block 1, rows 256..511: the checksum does not match", "--salvage")
    assert Path("x.npy").read_bytes() == b"older"
    assert llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy", "--rows", "512:700").code == 0
    assert np.array_equal(np.load("x.npy"), whole[512:700])

    for at, lost in ((len(raw), ["256..511"]), (made["bytes"] * 8 // 10, ["256..511", "768..999"])):
        Path("x.llgae").write_bytes(raw[:at])
        said = llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy", "--salvage")
        assert said.code == 0 and said.err.count("are lost") == len(lost)
        assert all(f"rows {rows} are lost" in said.err for rows in lost)
        back = np.load("x.npy")
        assert np.array_equal(back[:256], whole[:256]) and np.array_equal(back[512:768], whole[512:768])
        assert np.isnan(back[256:512]).all() and np.isnan(back[768:]).all() == (len(lost) == 2)
    Path("x.llgae").write_bytes(raw[:200])
    check_refused(llgae("decompress", checkpoint, "x.llgae", "-o", "y.npy", "--salvage"), "holds no intact block")
    assert not Path("y.npy").exists()


# ---- Standard input and output


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def to_bytes(monkeypatch: pytest.MonkeyPatch, llgae: Command, *arguments: object) -> tuple[bytes, str]:
    """What the command writes to standard output as bytes, and to standard error."""
    kept: list[bytes] = []

    class Kept(io.BytesIO):
        def write(self, part: Any) -> int:
            kept.append(bytes(part))
            return len(kept[-1])

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(Kept()))
        said = llgae(*arguments)
    assert said.code == 0, said.err
    return b"".join(kept), said.err


def test_pipes_carry_the_same_bytes(llgae: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1)
    llgae("decompress", checkpoint, "x.llgae", "-o", "x.npy")
    piped, told = to_bytes(monkeypatch, llgae, "compress", checkpoint, "-o", "-", "--step", 1)
    assert piped == Path("x.llgae").read_bytes() and "bits a row" in told
    for command in (("decompress", checkpoint, "-", "-o", "-"), ("info", "-", "--json")):
        begin, end = os.pipe()
        writer = threading.Thread(target=lambda end=end: (os.write(end, piped), os.close(end)))
        with io.TextIOWrapper(os.fdopen(begin, "rb")) as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            writer.start()
            if command[0] == "info":
                assert printed(llgae(*command))["bytes"] == len(piped)
            else:
                assert to_bytes(monkeypatch, llgae, *command)[0] == Path("x.npy").read_bytes()
            writer.join()


def test_bytes_do_not_go_to_a_terminal(llgae: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llgae("compress", checkpoint, "-o", "x.llgae", "--step", 1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Terminal(io.BytesIO()))
        check_refused(llgae("compress", checkpoint, "-o", "-", "--step", 1), "a terminal")
        check_refused(llgae("decompress", checkpoint, "x.llgae", "-o", "-"), "a terminal")
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO()))
    check_refused(llgae("info", "-"), "a terminal")
