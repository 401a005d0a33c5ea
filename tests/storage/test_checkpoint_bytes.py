"""Bytes in a checkpoint, read without torch: those that `load` reads, and nothing of a damaged or hostile file."""

import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import Tally, mutate, put, watched  # tests/hostile.py

from llgae_cli.errors import InputError
from llgae_cli.storage import Checkpoint, CheckpointName, load, save
from llgae_cli.storage.checkpoint import pack
from llgae_cli.storage.checkpoint_bytes import read_extra

BYTES = bytes(range(256)) * 5
SMALL = Checkpoint(
    config={"K": 3},
    state={"mu": torch.zeros(3, 8), "W": torch.ones(3, 8, 2).to(torch.bfloat16)},
    history=[{"epoch": 1, "mean_l2": 13.0}],
    epoch=1,
    mean_l2=13.0,
    train_mean_l2=12.0,
    seconds=1.5,
    data={"task": "subspaces", "shape": (2, 4)},
    provenance={"git_commit": None},
    trainer_state={"pair": (1, [torch.zeros(()), None, True, 10**30])},
    extras={"codec": torch.frombuffer(bytearray(BYTES), dtype=torch.uint8), "count": torch.tensor([5, 3, 2])},
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    name = CheckpointName.parse(
        "S0-tasksubspaces-model-nameLLGAE-K3-embed-dim2-beta0.01-n-step5-loglr-3.0-trainerclosed-form-cfg82b736013c_1_13.0.pkl"
    )
    return save(SMALL, tmp_path, name)


def changed(path: Path, change: Callable[[dict[str, Any]], object], **how: Any) -> Path:
    """The file with its content changed, by torch's own writer."""
    content = pack(SMALL)
    change(content)
    torch.save(content, path, **how)
    return path


def refusal(path: Path, name: str = "codec") -> str:
    with watched(), pytest.raises(InputError) as caught:
        read_extra(path, name)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_the_bytes_are_those_that_load_reads(saved: Path) -> None:
    with watched():
        assert read_extra(saved, "codec") == BYTES == load(saved).extras["codec"].numpy().tobytes()
        assert read_extra(saved, "novelty") is None


def test_it_does_not_import_torch(saved: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom llgae_cli.storage.checkpoint_bytes import read_extra\n"
        "sys.exit(len(read_extra(Path(sys.argv[1]), 'codec')) != 1280 or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(saved)], check=True)


@pytest.mark.parametrize("part", [slice(0, 0), slice(3, 10), slice(1280, 1280), slice(None)], ids=str)
def test_a_part_of_a_storage_is_read_where_it_lies(saved: Path, part: slice) -> None:
    changed(saved, lambda content: content["extras"].update(codec=content["extras"]["codec"][part]))
    assert read_extra(saved, "codec") == BYTES[part] == load(saved).extras["codec"].numpy().tobytes()


@pytest.mark.parametrize(
    "value",
    [1, "codec", [], {}, (), (1, 2, 3, 4), torch.zeros(()), torch.ones(3), torch.ones(3, dtype=torch.int8),
     torch.ones(4, 4, dtype=torch.uint8), torch.ones(9, dtype=torch.uint8)[::2],
     torch.ones(1, dtype=torch.uint8).expand(10**12), torch.ones(2, device="meta", dtype=torch.uint8)],
    ids=str,
)  # fmt: skip
def test_what_is_not_bytes_is_refused(saved: Path, value: Any) -> None:
    line = refusal(changed(saved, lambda content: content["extras"].update(codec=value)))
    assert "its codec is damaged" in line or "refused" in line


def test_more_bytes_than_the_storage_has_are_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(saved, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:1000] if data == BYTES else data)
    assert "its codec is damaged" in refusal(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format="another"),
        lambda content: content.update(format_version=2),
        lambda content: content.pop("seconds"),
        lambda content: content.update(unknown=1),
    ],
)
def test_other_files_are_refused_in_the_words_of_load(saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(InputError) as caught:
        load(changed(saved, change))
    assert refusal(saved) == str(caught.value)


@pytest.mark.parametrize("name", ["missing.pkl", ".", "cut.pkl", "text.pkl", "flipped.pkl"])
def test_what_is_no_sound_file_is_refused_in_the_words_of_load(saved: Path, name: str) -> None:
    whole = bytearray(saved.read_bytes())
    (saved.parent / "cut.pkl").write_bytes(whole[:-100])
    (saved.parent / "text.pkl").write_text("text")
    whole[len(whole) // 2] ^= 1
    (saved.parent / "flipped.pkl").write_bytes(whole)
    path = saved.parent / name
    with pytest.raises(InputError) as caught:
        load(path)
    assert refusal(path) == str(caught.value)


@pytest.mark.parametrize("extras", [None, [], 1, "codec"])
def test_extras_that_are_no_mapping_are_refused(saved: Path, extras: Any) -> None:
    assert "extras" in refusal(changed(saved, lambda content: content.update(extras=extras)))


def program(path: Path, pickled: bytes) -> Path:
    """The file with another pickle."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else data)
    return path


TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
        b"\x80\x02(ios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 entries
        b"\x80\x02}p999999999\n.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GB
        b"\x80\x05\x96\xff\xff\xff\x7f\x00\x00\x00\x00.",  # bytes of 2 GB
        b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
        b"\x80\x02" + TENSOR + b"}X\x0c\x00\x00\x00__defaults__)sb.",  # sets an attribute of a function
        b"\x80\x02" + TENSOR + b"N}X\x08\x00\x00\x00__code__Ns\x86b.",
        b"\x80\x02" + TENSOR + b")R.",  # a call without arguments
        b"\x80\x02ctorch\nByteStorage\n)R.",  # what is no function is called
        b"\x80\x02ccollections\nOrderedDict\n(K\x01K\x02tR.",
        b"\x80\x02\x82\x01.",  # the registry of extensions
        b"\x80\x02K\x01Q.",
        b"\x80\x02.",
        b"",
    ],
)
def test_a_hostile_pickle_is_refused(saved: Path, pickled: bytes) -> None:
    refusal(program(saved, pickled))


@pytest.mark.slow
def test_mutated_pickles_are_refused_or_read(saved: Path) -> None:
    draw, tally = random.Random(7), Tally()
    changed(saved, lambda content: None)  # without a checksum of the whole
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))

    def read() -> None:
        found = read_extra(saved, "codec")
        assert found is None or len(found) <= len(BYTES)

    for i in range(1500):
        program(put(saved, whole), mutate(pickled, draw))
        tally.attempt(read, i)
    assert tally.read > 30 and tally.refused > 300, (tally.read, tally.refused)
