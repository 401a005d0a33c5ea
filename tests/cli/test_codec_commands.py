"""`llgae compress` and its kin with the codec itself: from a checkpoint to a file and back, bounds kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pictured  # tests/pictured.py
import pytest
from command_line import Command, check_refused  # tests/command_line.py

from llgae_cli.codec import Codec

pytestmark = [pytest.mark.slow, pytest.mark.numeric]


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 600 images of 6 x 9 x 3 bytes in a file colours.npy next to it."""
    folder = tmp_path_factory.mktemp("codec")
    return pictured.train(folder, task=pictured.colours(folder, 600))


@pytest.mark.parametrize("options", [("--bits", 40), ("--step", 8), ("--max-l2", 9), ("--max-abs", 3), ("--lossless",)])
def test_images_come_back_within_what_was_asked(llgae: Command, coloured: Path, options: tuple[object, ...]) -> None:
    made = llgae(
        "compress", coloured, "-o", "x.llgae", *options, "--split", "all", "--embed-model", "--verify", "--json"
    )
    assert made.code == 0, made.err
    told = json.loads(made.out)
    assert llgae("decompress", "x.llgae", "-o", "a.npy").code == 0
    assert llgae("decompress", coloured, "x.llgae", "-o", "b.npy").code == 0
    assert Path("a.npy").read_bytes() == Path("b.npy").read_bytes()
    x, x_hat = np.load(coloured.parent / "colours.npy"), np.load("a.npy")
    assert x_hat.shape == x.shape and x_hat.dtype == x.dtype
    error = np.abs(x.astype(float) - x_hat.astype(float)).reshape(600, -1)
    limit = {"--max-l2": (error**2).mean(1).max(), "--max-abs": error.max(), "--lossless": error.max()}
    if options[0] in limit:
        assert limit[str(options[0])] <= (options[1] if len(options) > 1 else 0)
    if options[0] == "--bits":
        assert 36 < 8 * (told["bytes"] - told["sizes"]["model"]) / 600 <= 40
    assert told["mean_squared_error"] == pytest.approx((error**2).mean(), rel=1e-9)


def test_another_model_is_refused(llgae: Command, coloured: Path, tmp_path: Path) -> None:
    other = pictured.train(tmp_path, task=f"npy:{coloured.parent / 'colours.npy'}", K=2)
    assert llgae("compress", coloured, "-o", "x.llgae", "--step", 9).code == 0
    check_refused(llgae("decompress", other, "x.llgae", "-o", "x.npy"), "was made by the model with identity")


def test_a_rate_below_that_of_header_and_index_is_refused(llgae: Command, coloured: Path) -> None:
    check_refused(llgae("compress", coloured, "-o", "x.llgae", "--bits", 1), "bits")


def test_floats_cannot_be_coded_losslessly(llgae: Command, coloured: Path) -> None:
    np.save("floats.npy", np.load(coloured.parent / "colours.npy").astype(np.float32))
    said = llgae("compress", coloured, "--task", "npy:floats.npy", "-o", "x.llgae", "--lossless")
    check_refused(said, "lossless coding is for integers", "float32")


def test_some_rows_and_memory_mapped_ones(llgae: Command, coloured: Path) -> None:
    np.save("own.npy", np.load(coloured.parent / "colours.npy"))
    for name in ("a", "b"):
        source = ("--task", "npy:own.npy") if name == "a" else ("--split", "all")
        assert llgae("compress", coloured, *source, "-o", f"{name}.llgae", "--max-abs", 2).code == 0
    assert llgae("decompress", coloured, "a.llgae", "-o", "a.npy").code == 0
    assert llgae("decompress", coloured, "a.llgae", "-o", "part.npy", "--rows", "250:260").code == 0
    assert np.array_equal(np.load("a.npy")[250:260], np.load("part.npy"))


def test_decompressing_does_not_import_torch(llgae: Command, coloured: Path) -> None:
    assert llgae("compress", coloured, "-o", "x.llgae", "--max-abs", 3, "--split", "all", "--embed-model").code == 0
    truth = Codec.load(coloured).decode(Path("x.llgae").read_bytes())
    for command in (("decompress", coloured, "x.llgae", "-o", "x.npy"), ("decompress", "x.llgae", "-o", "x.npy")):
        assert "torch" not in modules_after(*command)
        assert np.array_equal(np.load("x.npy"), truth) and np.load("x.npy").dtype == truth.dtype
        Path("x.npy").unlink()
    assert "torch" not in modules_after("info", "x.llgae")


def modules_after(*command: object) -> set[str]:
    """Return the modules that a process with two threads has loaded once it has run the command."""
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))\n"
        "from llgae_cli.__main__ import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    return set(done.stderr.splitlines()[-1].split())
