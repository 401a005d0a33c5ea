"""Hostile files: ten thousand bad inputs, each refused in one line or read as sound, in bounded memory and time."""

import gzip
import io
import random
import signal
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
import torch
import yaml
from hostile import Tally, cut, mutate, put, watched  # tests/hostile.py
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llgae_cli import experiment
from llgae_cli.cli.app import main
from llgae_cli.config import Config, parse_config, parse_yaml, read_config
from llgae_cli.errors import InputError, RunError
from llgae_cli.factory import restore
from llgae_cli.models import Model
from llgae_cli.storage import codes, compare_name, load
from llgae_cli.storage.checkpoint import pack
from llgae_cli.storage.checkpoint_file import SIGNATURE_BYTES, sign
from llgae_cli.storage.names import CheckpointName, name_of, slug
from llgae_cli.storage.run_table import filter_rows
from llgae_cli.sweep.plan import read_plan
from llgae_cli.tasks import download, load_task
from llgae_cli.tasks.idx import read_idx

pytestmark = pytest.mark.slow

# How many bad inputs each reader is given. Every test says that it tried just as many.
TRIED = {
    "checkpoint, a bit": 1300,
    "checkpoint, raw": 600,
    "checkpoint, signed again": 1200,
    "checkpoint, cut": 100,
    "checkpoint, wrong values": 300,
    "checkpoint, resumed": 60,
    "codes": 1400,
    "npy": 1200,
    "idx": 1200,
    "images": 900,
    "config": 1000,
    "override": 400,
    "sweep": 300,
    "name": 2400,
    "condition": 1000,
}


def test_ten_thousand_bad_inputs_are_tried() -> None:
    assert sum(TRIED.values()) >= 10_000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictured.train(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return restore(checkpoint)[0]


def tried(name: str, tally: Tally, least_refused: float = 0.5) -> None:
    """All inputs were tried, and most were refused: a test whose inputs are all sound would show nothing."""
    assert int(tally) == TRIED[name], (int(tally), name)
    assert tally.refused >= least_refused * int(tally), (tally.refused, tally.read)


# ---- Checkpoints


def signed(raw: bytes) -> bytes:
    """A checkpoint's bytes with their last 79 replaced by a checksum that agrees with what stands before."""
    file = io.BytesIO(raw[:-SIGNATURE_BYTES] if len(raw) > SIGNATURE_BYTES else raw)
    if len(raw) > SIGNATURE_BYTES + 2:
        sign(file)
    return file.getvalue()


def restored(path: Path) -> Callable[[], object]:
    """Read a checkpoint down to the model, which then codes a few rows."""

    def read() -> None:
        model, stored, _ = restore(path)
        model.decode(model.encode(torch.ones(3, model.D)))
        compare_name(path, stored)

    return read


def test_a_flipped_bit_in_every_region_is_caught(checkpoint: Path, tmp_path: Path) -> None:
    whole, draw, tally = checkpoint.read_bytes(), random.Random(0), Tally()
    path, size = tmp_path / checkpoint.name, len(whole)
    # Every 40th byte or so from end to end; all of the zip's first header, and of its table's end and the checksum.
    places = [*range(0, size, -(-size // 900))][:900] + [*range(100)] + [size - 1 - i for i in range(300)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        tally.attempt(restored(put(path, bytes(flipped))), place)
    while int(tally) < TRIED["checkpoint, a bit"]:
        flipped = bytearray(whole)
        flipped[draw.randrange(size)] ^= 1 << draw.randrange(8)
        tally.attempt(restored(put(path, bytes(flipped))), int(tally))
    tried("checkpoint, a bit", tally, least_refused=1.0)


def test_torchs_own_reader_does_not_notice_what_the_checksum_catches(checkpoint: Path, tmp_path: Path) -> None:
    # Why there is a checksum at all: torch.save writes the zip's checksums, torch.load does not look at them.
    whole = bytearray(checkpoint.read_bytes())
    truth = torch.load(checkpoint, weights_only=True)["state"]["W"]
    bits = truth.contiguous().numpy().tobytes()
    at = whole.index(bits)
    whole[at + len(bits) // 2] ^= 0x10
    path = put(tmp_path / checkpoint.name, bytes(whole))
    assert not torch.equal(torch.load(path, weights_only=True)["state"]["W"], truth)
    with pytest.raises(InputError, match="its checksum does not match"):
        load(path)


def test_a_mutated_checkpoint_is_caught_by_its_checksum(checkpoint: Path, tmp_path: Path) -> None:
    whole, draw, tally = checkpoint.read_bytes(), random.Random(1), Tally()
    path = tmp_path / checkpoint.name
    while int(tally) < TRIED["checkpoint, raw"]:
        raw = mutate(whole, draw)
        if raw != whole:
            tally.attempt(restored(put(path, raw)), int(tally))
    tried("checkpoint, raw", tally, least_refused=1.0)


def test_a_mutated_checkpoint_with_a_checksum_of_its_own_is_refused_or_read(checkpoint: Path, tmp_path: Path) -> None:
    whole, draw, tally = checkpoint.read_bytes(), random.Random(2), Tally()
    with zipfile.ZipFile(checkpoint) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        start, size = archive.getinfo(name).header_offset, archive.getinfo(name).file_size
    path = tmp_path / checkpoint.name
    for i in range(TRIED["checkpoint, signed again"]):
        if i % 2:  # the pickle and the zip's own structures, where a change means most
            raw = whole[:start] + mutate(whole[start : start + size + 200], draw) + whole[start + size + 200 :]
        else:
            raw = mutate(whole[: -SIGNATURE_BYTES - 2], draw) + whole[-SIGNATURE_BYTES - 2 :]
        tally.attempt(restored(put(path, signed(raw))), i)
    tried("checkpoint, signed again", tally)


def test_a_checkpoint_cut_at_every_percent_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tally, path = Tally(), tmp_path / "cut.pkl"
    for raw in cut(checkpoint.read_bytes()):
        tally.attempt(restored(put(path, raw)), len(raw))
    tried("checkpoint, cut", tally, least_refused=1.0)


def evil(draw: random.Random) -> Any:
    """A value that has no business in a checkpoint or a config, or that has and is out of all bounds."""
    return draw.choice(
        [
            None, True, -1, 0, 1, 3, 10**9, 2**31, 2**63, 10**30, 1 << 5000, -0.5, 1e308, float("nan"), float("inf"),
            "", "x", "\n", "\x1b[2J", "\u202eabc", "../../etc/x", "a" * 300, "llgae", "npy:../x", "\udcff", "\0",
            [], {}, [1], [[1, [2]]], {"a": 1}, {1: 2}, (), ("a", 1), [None], [10**12, 10**12], [-1, 64], [64.0], [True],
            torch.ones(3), torch.ones(()), torch.ones(0), torch.zeros(2, 2, dtype=torch.long),
            torch.ones(1).expand(10**12), torch.tensor(float("nan")), torch.ones(4, 64, dtype=torch.float64) * 1e300,
            torch.ones(4, 64) * 3e38, torch.ones(2, dtype=torch.bool), torch.ones(4, dtype=torch.bfloat16),
        ]
    )  # fmt: skip


def places(nest: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of nested containers."""
    pairs = list(nest.items()) if isinstance(nest, dict) else list(enumerate(nest)) if isinstance(nest, list) else []
    for key, value in pairs:
        yield nest, key
        yield from places(value)


def spoilt(checkpoint: Path, draw: random.Random, within: str | None = None) -> bytes:
    """A checkpoint's bytes with one to three values replaced or removed, and a checksum that agrees."""
    content = pack(load(checkpoint))
    for _ in range(draw.choice((1, 1, 2, 3))):
        container, key = draw.choice(list(places(content if within is None else content[within])))
        if draw.random() < 0.15:
            del container[key]
        else:
            container[key] = evil(draw)
    file = io.BytesIO()
    torch.save(content, file)
    sign(file)
    return file.getvalue()


def test_a_checkpoint_with_wrong_values_is_refused_or_read(checkpoint: Path, tmp_path: Path) -> None:
    draw, tally = random.Random(3), Tally()
    path = tmp_path / checkpoint.name
    for i in range(TRIED["checkpoint, wrong values"]):
        tally.attempt(restored(put(path, spoilt(checkpoint, draw))), i)
    tried("checkpoint, wrong values", tally, least_refused=0.3)


@pytest.mark.parametrize("key", ["config", "state", "history"])
def test_a_million_wrong_values_are_one_error(checkpoint: Path, tmp_path: Path, key: str) -> None:
    content = pack(load(checkpoint))
    content[key] = [1] * 1_000_000 if key == "history" else dict.fromkeys(range(1_000_000))
    torch.save(content, tmp_path / checkpoint.name)
    with watched(), pytest.raises(InputError, match=f"{key}: not a "):
        load(tmp_path / checkpoint.name)


CLAIMS = [
    {"K": 10**9 - 1},
    {"K": 10**9 - 1, "embed-dim": 10**9 - 1},
    {"embed-dim": 10**9 - 1},
    {"model": "residual", "levels": 10**9 - 1},
    {"model": "deep-llgae", "trainer": "gradient", "width": 10**9 - 1},
]


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
@pytest.mark.parametrize("shape", [[8, 8], [10**9, 10**9]], ids=str)
def test_a_model_of_claimed_sizes_is_not_built(
    checkpoint: Path, tmp_path: Path, claim: dict[str, Any], shape: list[int]
) -> None:
    content = pack(load(checkpoint))
    content["config"] |= claim
    content["data"]["shape"] = shape
    torch.save(content, tmp_path / checkpoint.name)
    with watched(), pytest.raises(InputError):
        restore(tmp_path / checkpoint.name)


@pytest.mark.parametrize("trainer", ["closed-form", "gradient"])
def test_a_run_resumed_from_wrong_values_is_refused_or_goes_on(tmp_path: Path, trainer: str) -> None:
    source = pictured.train(tmp_path / "sound", trainer=trainer, batch_size=1000)
    config = Config.model_validate(load(source).config | {"epochs": 4, "checkpoint-dir": str(tmp_path / "out")})
    draw, tally, path = random.Random(13), Tally(), tmp_path / source.name
    for i in range(TRIED["checkpoint, resumed"] // 2):
        raw = spoilt(source, draw, within="trainer_state")
        put(path, raw)
        try:
            experiment.train(config, resume=str(path))
            tally.read += 1
        except RunError as error:  # state that is sound in form and diverges
            assert "\n" not in str(error)
            tally.read += 1
        except InputError as error:
            assert "\n" not in str(error), i
            tally.refused += 1
    assert int(tally) == TRIED["checkpoint, resumed"] // 2 and tally.refused > 10


# ---- Codes


def test_codes_that_unpack_to_a_thousand_times_their_size_are_refused(model: Model, tmp_path: Path) -> None:
    n = 20_000_000
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, width, kind in (("k", 1, "<i4"), ("b", model.E, "<f4")):
            with archive.open(f"{name}.npy", "w") as member:
                shape = (n,) if name == "k" else (n, width)
                np.lib.format.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
                for _ in range(4 * width):
                    member.write(bytes(n))
    assert (tmp_path / "bomb.npz").stat().st_size < 1_000_000
    with watched(), pytest.raises(InputError, match="unpacks to 80000"):
        codes.CodesFile(tmp_path / "bomb.npz", model)


def test_mutated_codes_are_refused_or_read(checkpoint: Path, model: Model, tmp_path: Path) -> None:
    sources = []
    k, b = np.arange(40, dtype=np.int32) % 4, np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    for save in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        save(file, k=k, b=b, mean=b[:, 0], model=np.array(codes.fingerprint(model)))
        sources.append(file.getvalue())
    draw, tally, path = random.Random(4), Tally(), tmp_path / "codes.npz"

    def read() -> None:
        for part in codes.decode_file(model, codes.CodesFile(path, model)):
            assert part.isfinite().all()

    for whole in sources:
        for raw in cut(whole):
            put(path, raw)
            tally.attempt(read, len(raw))
    while int(tally) < TRIED["codes"]:
        if draw.random() < 0.5:
            put(path, mutate(draw.choice(sources), draw, sources[0]))
        else:  # a member changed, with the zip's checksums right
            arrays = {name: np.load(io.BytesIO(sources[0]))[name] for name in ("k", "b", "mean", "model")}
            with zipfile.ZipFile(path, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
                spoil = draw.choice(list(arrays))
                for name, array in arrays.items():
                    member = io.BytesIO()
                    np.save(member, array)
                    raw = member.getvalue()
                    archive.writestr(f"{name}.npy", mutate(raw, draw) if name == spoil else raw)
        tally.attempt(read, int(tally))
    tried("codes", tally, least_refused=0.4)


# ---- Arrays and images


def test_mutated_npy_files_are_refused_or_read(tmp_path: Path) -> None:
    sources = []
    for array in (
        np.random.default_rng(0).normal(size=(20, 6)),
        np.random.default_rng(0).normal(size=(20, 2, 3)).astype(np.float16),
        np.asfortranarray(np.arange(120, dtype=np.uint16).reshape(20, 6)),
        np.arange(360, dtype=">i4").reshape(20, 2, 3, 3),
    ):
        file = io.BytesIO()
        np.save(file, array)
        sources.append(file.getvalue())
    draw, tally, path = random.Random(5), Tally(), tmp_path / "x.npy"

    def read() -> None:
        task = load_task(f"npy:{path}", tmp_path)
        assert task.train.rows(slice(None)).isfinite().all()

    for raw in cut(sources[0]):
        put(path, raw)
        tally.attempt(read, len(raw))
    while int(tally) < TRIED["npy"]:
        whole = draw.choice(sources)
        head = draw.random() < 0.7  # the header is where a change means most
        raw = mutate(whole[:128], draw, sources[0]) + whole[128:] if head else mutate(whole, draw, sources[0])
        put(path, raw)
        tally.attempt(read, int(tally))
    tried("npy", tally)


def test_mutated_idx_files_are_refused_or_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 5, 5), dtype=np.uint8)
    plain = b"\0\0\x08\x03" + struct.pack(">III", *images.shape) + images.tobytes()
    draw, tally, path = random.Random(6), Tally(), tmp_path / "idx"
    sources = [plain, gzip.compress(plain, mtime=0)]

    def read() -> None:
        read_idx(path)

    for whole in sources:
        for raw in cut(whole):
            put(path, raw)
            tally.attempt(read, len(raw))
    while int(tally) < TRIED["idx"]:
        raw = mutate(draw.choice(sources), draw, sources[0])
        if draw.random() < 0.3:  # sound gzip around broken idx
            raw = gzip.compress(mutate(plain, draw), mtime=0)
        put(path, raw)
        tally.attempt(read, int(tally))
    tried("idx", tally)


def test_mutated_images_are_refused_or_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    sources = {}
    for suffix in ("png", "jpg", "bmp", "gif", "webp", "tif", "ppm"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
        sources[suffix] = file.getvalue()
    draw, tally = random.Random(7), Tally()
    folder = tmp_path / "images"
    folder.mkdir()
    for name in "ac":
        put(folder / f"{name}.png", sources["png"])

    def read() -> None:
        load_task(f"images:{folder}", tmp_path)

    read()  # a format's reader is imported when it is first needed
    while int(tally) < TRIED["images"]:
        suffix = draw.choice([*sources, "png", "png"])
        path = put(folder / f"{draw.choice('0b')}.{suffix}", mutate(sources[suffix], draw, sources["png"]))
        tally.attempt(read, (suffix, int(tally)))
        path.unlink()
    tried("images", tally, least_refused=0.3)


def test_images_of_a_hundred_thousand_squared_are_refused_unread(tmp_path: Path) -> None:
    side = 100_000
    for name in "ab":
        put(tmp_path / f"{name}.ppm", b"P6 %d %d 255\n" % (side, side) + bytes(100))
    with watched(), pytest.raises(InputError, match="pixels that are allowed"):
        load_task(f"images:{tmp_path}", tmp_path)


# ---- Config


CONFIGS = (
    "task: subspaces\nK: 4\nembed-dim: 3\nbeta: 1e-2\nn-step: 5\nepochs: 3\nfigures: false\nrestarts: auto\n",
    "# a comment\n{task: 'npy:x.npy', K: 11, lr: 1.0e-3, data-dir: \"a b\", seed: 28}\n",
    "K: &a 3\nn-step: *a\ntask: |\n  mnist\nprior: !!str gaussian\n",
)
PIECES = (
    "!!python/object/apply:os.system [id]", "!!int ''", "!!bool x", "!!timestamp x", "!!binary x", "&a [*a]", "*a",
    "&a", "!<tag:yaml.org,2002:float> ''", "<<: *a", "? [a]", "!!set {a}", "0x" + "f" * 3000, "9" * 5000, "1e999",
    "\\ud800", '"\\0"', '"\\ud800"', "\u202e", "\x85", "\x1b", "{", "[", "- ", "'", '"', "|", ">", "%YAML 9.9\n", "---",
    "...", "K: K: K", "2001-99-99", "1:2:3", ".nan", "~", "0o17", "\ufeff", "\t", "a" * 500, "[" * 300, "{a: " * 300,
)  # fmt: skip


def spoilt_text(draw: random.Random) -> bytes:
    """A config's bytes with a piece of hostile YAML put in, or mutated as any file."""
    text = draw.choice(CONFIGS)
    if draw.random() < 0.7:
        for _ in range(draw.choice((1, 1, 2, 4))):
            at = draw.choice([i + 1 for i, c in enumerate(text) if c in " \n:"])
            text = text[:at] + draw.choice(PIECES) + draw.choice(("", "\n", " ")) + text[at:]
        return text.encode("utf-8", "surrogatepass")
    return mutate(text.encode(), draw, CONFIGS[0].encode())


def test_mutated_configs_are_refused_or_read(tmp_path: Path) -> None:
    draw, tally, path = random.Random(8), Tally(), tmp_path / "config.yaml"

    def read() -> None:
        config = read_config([path])
        name_of(config, 0, 0.0)

    while int(tally) < TRIED["config"]:
        raw = spoilt_text(draw)
        put(path, raw)
        tally.attempt(read, raw)
    tried("config", tally)


def test_mutated_overrides_are_refused_or_read(tmp_path: Path) -> None:
    draw, tally = random.Random(9), Tally()
    keys = ("K", "task", "beta", "data-dir", "seed", "inference", "restarts", "figures")
    while int(tally) < TRIED["override"]:
        override = f"{draw.choice(keys)}={draw.choice(PIECES)}{draw.choice(('', *PIECES))}"
        tally.attempt(lambda override=override: read_config([], [override]), override)  # type: ignore[misc]
    tried("override", tally)


def test_mutated_sweep_files_are_refused_or_read(tmp_path: Path) -> None:
    sweep = "base: {task: subspaces, K: 4}\ngrid: {K: [1, 2], embed-dim: [0, 3]}\nrepeat: 2\n"
    draw, tally, path = random.Random(10), Tally(), tmp_path / "sweep.yaml"
    while int(tally) < TRIED["sweep"]:
        text = sweep
        for _ in range(draw.choice((1, 2))):
            at = draw.choice([i + 1 for i, c in enumerate(text) if c in " \n:["])
            text = (
                text[:at] + draw.choice((*PIECES, "zip: {}", "halving: 3", "repeat: 1000000000", "99999")) + text[at:]
            )
        put(path, text.encode("utf-8", "surrogatepass"))
        tally.attempt(lambda: read_plan(path), text)
    tried("sweep", tally)


LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
HOSTILE_YAML = {
    "10 MB of nesting": b"[" * 10_000_000,
    "10 MB of keys": b"{a: " * 2_500_000,
    "nesting": b"[" * 90_000,
    "nested keys": b"{a: " * 20_000,
    "10^12 values by anchors": (LAUGHS + "K: *a11\n").encode(),
    "10^12 values unused": LAUGHS.encode(),
    "merged 10^9 times": b"a: &a {x: 1}\n"
    + b"".join(
        b"b%d: &b%d {<<: [%s]}\n" % (i, i, b",".join([b"*b%d" % (i - 1) if i else b"*a"] * 9)) for i in range(9)
    ),
    "a list in itself": b"K: &a [*a]\n",
    "a mapping in itself": b"K: &a {b: *a}\n",
    "a tag that calls": b"K: !!python/object/apply:os.system ['touch pwned']\n",
    "a tag that imports": b"K: !!python/module:os\n",
    "a tag that makes": b"K: !!python/object/new:os.mkdir [pwned]\n",
    "a number of 100,000 digits": b"K: 0x" + b"f" * 90_000,
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    path, tally = put(tmp_path / "x.yaml", HOSTILE_YAML[name]), Tally()
    tally.attempt(lambda: read_config([path]), name)
    tally.attempt(lambda: read_plan(path), name)
    assert tally.refused == 2 and list(tmp_path.iterdir()) == [path]


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["K", "task", "beta", "data-dir", "candidates", "model", "x"]), plain_values))
def test_any_plain_values_are_a_config_or_an_input_error(values: dict[str, Any]) -> None:
    Tally().attempt(lambda: parse_yaml(yaml.safe_dump(values), "x"), values)
    Tally().attempt(lambda: parse_config(values), values)


# ---- Names


def test_mutated_names_are_refused_or_read(checkpoint: Path) -> None:
    draw, tally = random.Random(11), Tally()
    original = (
        "-S28-taskfashion-mnist-compress-shuffle1-depth1-graph-dim784-embed-dim20-iter-per-layer-1-kernel-size11"
        "-model-nameLLGAE-beta0.01-n-step5-p-null0.0-loglr-3.0_540_768.06268.pkl"
    )
    pieces = ("../", "/", "\\", "\n", "\r", "\0", "\u202e", "\x1b[0m", "K" * 300, "-K11", "-depth1", "_1_2", "١",
              "e999", "nan", "999999999999", ".pkl", "-cfg3f9a2c", "é", " ")  # fmt: skip
    for i in range(TRIED["name"]):
        text = draw.choice((checkpoint.name, original))
        if i % 2:
            text = mutate(text.encode(), draw, original.encode()).decode("utf-8", "surrogateescape")
        for _ in range(draw.choice((0, 1, 3)) if i % 2 else 1):
            at = draw.randrange(len(text) + 1)
            text = text[:at] + draw.choice(pieces) + text[at:]

        def read(text: str = text) -> None:
            name = CheckpointName.parse(text)
            assert CheckpointName.parse(name.format()).format() == name.format() and not set("/\0\n") & set(text)
            assert "/" not in slug(text)

        tally.attempt(read, text)
    tried("name", tally)


def test_mutated_conditions_are_refused_or_read() -> None:
    draw, tally = random.Random(12), Tally()
    for _ in range(TRIED["condition"]):
        raw = mutate(draw.choice((b"K=11", b"mean_l2<800", b"task!=mnist", b"lr >= 3e-4")), draw, b"1e999 nan <=")
        text = raw.decode("utf-8", "surrogateescape")
        tally.attempt(lambda text=text: filter_rows([], [text]), text)  # type: ignore[misc]
    tried("condition", tally)


# ---- Names on the command line

NAMES = (
    "../../x", "a\nb", "a\x1b[2Jb", "a\u202eb", "x" * 300, "é" * 150, "a\0b", "\udcff", "..", "~nobody/x", "", "-x",
    "\u2028", "x" * 5000, "con\r", "$(touch pwned)", "a/" * 2000 + "x",
)  # fmt: skip
COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "data of npy": lambda name: ["data", f"npy:{name}"],
    "data of images": lambda name: ["data", f"images:{name}"],
    "task": lambda name: ["data", name],
    "data-dir": lambda name: ["data", "mnist", "--data-dir", name],
    "config": lambda name: ["config", "-c", name],
    "override": lambda name: ["config", "-c", "c.yaml", "-S", name],
    "checkpoint": lambda name: ["eval", name],
    "resume": lambda name: ["train", "-c", "c.yaml", "--resume", name],
    "runs": lambda name: ["runs", name],
    "where": lambda name: ["runs", ".", "--where", name],
    "checkpoint-dir": lambda name: ["train", "-c", "c.yaml", "-q", "-S", f"checkpoint-dir={name}"],
    "codes": lambda name: ["encode", "CHECKPOINT", "-o", f"{name}.npz"],
    "decoded": lambda name: ["decode", "CHECKPOINT", name, "-o", "x.npy"],
    "samples": lambda name: ["sample", "CHECKPOINT", "-n", "1", "-o", f"{name}.npy"],
    "report": lambda name: ["report", name, "-o", "x.html"],
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_hostile_name_is_one_line_and_stays_inside(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    home = tmp_path / "two" / "levels"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    # No network and no other copy of a data set: the name alone decides.
    monkeypatch.setattr(download, "datasets", lambda: types.SimpleNamespace(MNIST=unreachable))
    put(home / "c.yaml", b"task: subspaces\nK: 2\nembed-dim: 1\nrestarts: 1\nmoves: 0\nepochs: 1\nfigures: false\n")
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    for name in NAMES:
        arguments = [str(checkpoint) if part == "CHECKPOINT" else part for part in COMMANDS[what](name)]
        monkeypatch.setattr(sys, "argv", ["llgae", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert ended.value.code in (0, 1, 2), (what, name)
        assert all(c.isprintable() or c in "\n\t" for c in out + err), (what, name)
        if ended.value.code and "Usage" not in err:
            assert err.startswith("llgae: ") and err.count("\n") == 1, (what, name, err)
    for signum, handler in before.items():
        signal.signal(signum, handler)
    assert not list(tmp_path.rglob("pwned"))
    # What a user names with ../ lies there; nothing else is outside.
    assert {path.name for path in tmp_path.iterdir()} <= {"two", "x", "x.npz", "x.npy"}


def unreachable(root: Path, **options: Any) -> None:
    raise OSError("Name or service not known")
