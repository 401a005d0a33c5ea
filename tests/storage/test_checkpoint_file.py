"""Files of checkpoints: written atomically, and read as data that can run no code."""

import errno
import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llgae_cli.config import Config
from llgae_cli.errors import InputError, RunError
from llgae_cli.storage import (
    FORMAT_VERSION,
    Checkpoint,
    CheckpointName,
    atomic,
    check_writable,
    clean_temporaries,
    compare_name,
    find_last,
    load,
    name_of,
    provenance,
    save,
)
from llgae_cli.storage.atomic import ABANDONED, temporary_path
from llgae_cli.storage.checkpoint import pack

ROOT = Path(__file__).parents[2]
CONFIG = Config(task="subspaces", K=3, embed_dim=2, trainer="gradient")
NAME = name_of(CONFIG, 4, 12.5)


def a_checkpoint(**changes: Any) -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    numpy_generator = np.random.default_rng(0)
    values: dict[str, Any] = {
        "config": CONFIG.plain(),
        "state": {
            "mu": torch.zeros(3, 8),
            "W": torch.randn(3, 8, 2, generator=generator),
            "counts": torch.tensor([1, 2, 3]),
        },
        "history": [{"epoch": 1, "mean_l2": 13.0}, {"epoch": 2, "mean_l2": 12.5, "largest": float("nan")}],
        "epoch": 4,
        "mean_l2": 12.5,
        "train_mean_l2": None,
        "seconds": 1.5,
        "data": {"task": "subspaces", "fingerprint": "abc", "shape": (2, 4), "N": 10, "D": 8, "source": "made here"},
        "provenance": provenance(),
        "trainer_state": {
            "optimizer": optimizer.state_dict(),
            "generators": {"torch": generator.get_state(), "numpy": numpy_generator.bit_generator.state},
            "pair": (1, [torch.zeros(()), None, True]),
        },
        "extras": {"usage": torch.tensor([5, 3, 2]), "threshold": 0.5},
    }
    return Checkpoint(**{**values, **changes})


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def refusal(path: Path) -> str:
    """The one line that `load` refuses the file with."""
    with pytest.raises(InputError) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line
    assert str(path.name) in line
    return line


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(a_checkpoint(), tmp_path / "checkpoints", NAME)


def resaved(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with its content changed, by torch's own writer."""
    content = pack(a_checkpoint())
    change(content)
    torch.save(content, path)
    return path


def rezipped(path: Path, change: Callable[[str, bytes], bytes], **how: Any) -> Path:
    """The file with its members' bytes changed, and checksums that agree with them."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", **how) as archive:
        for name, data in members.items():
            archive.writestr(name, change(name, data))
    return path


# Written and read back


def test_what_is_saved_is_what_is_loaded(saved: Path) -> None:
    before, after = a_checkpoint(), load(saved)
    before.provenance["created"] = after.provenance["created"]
    for key, value in vars(before).items():
        if key != "trainer_state":
            assert same(value, getattr(after, key)), key
    assert same(before.trainer_state["generators"], after.trainer_state["generators"])
    assert same(before.trainer_state["pair"], after.trainer_state["pair"])
    assert saved.name == NAME.format()
    assert os.listdir(saved.parent) == [saved.name]


def test_an_optimizer_and_generators_go_on_where_they_were(saved: Path) -> None:
    state = load(saved).trainer_state
    optimizer = torch.optim.Adam(torch.nn.Linear(3, 2).parameters())
    optimizer.load_state_dict(state["optimizer"])
    assert optimizer.state_dict()["state"][0]["step"] == 1
    torch.Generator().set_state(state["generators"]["torch"])
    np.random.default_rng().bit_generator.state = state["generators"]["numpy"]


def test_torch_alone_reads_it_too(saved: Path) -> None:
    content = torch.load(saved, map_location="cpu", weights_only=True)
    assert content["format_version"] == FORMAT_VERSION
    assert json.loads(json.dumps(content["config"])) == CONFIG.plain()


def test_a_view_is_saved_without_the_rest_of_its_storage(tmp_path: Path) -> None:
    state = {"W": torch.zeros(1_000_000)[:4], "p": torch.nn.Parameter(torch.ones(2)), "x": torch.ones(1).expand(5)}
    path = save(a_checkpoint(state=state), tmp_path, NAME)
    assert path.stat().st_size < 50_000
    assert type(load(path).state["p"]) is torch.Tensor
    assert load(path).state["x"].tolist() == [1.0] * 5


def test_numbers_and_texts_of_other_libraries_are_made_plain(tmp_path: Path) -> None:
    data = {"N": np.int64(3), "scale": np.float32(0.5), "source": "caf\udce9"}
    loaded = load(save(a_checkpoint(data=data, mean_l2=np.float64(12.5)), tmp_path, NAME))
    assert loaded.data == {"N": 3, "scale": 0.5, "source": "caf\\udce9"}
    assert type(loaded.data["N"]) is int


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"state": {"W": torch.tensor([1.0, float("nan")])}}, "not finite"),
        ({"state": {"W": [1.0]}}, "only tensors"),
        ({"config": {"path": Path("x")}}, "PosixPath"),
        ({"config": {"W": torch.ones(1)}}, "'config' has a Tensor"),
        ({"extras": {"f": print}}, "builtin_function"),
        ({"extras": {"n": 10**2000}}, "bits"),
        ({"mean_l2": float("nan")}, "mean_l2"),
        ({"seconds": -1.0}, "seconds"),
        ({"history": [{"mean_l2": "low"}]}, "history"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(RunError, match=line):
        save(a_checkpoint(**changes), tmp_path, NAME)
    assert not os.listdir(tmp_path)


# Never over another run's result


def test_the_same_result_again_leaves_the_file_as_it_is(saved: Path) -> None:
    before = saved.stat()
    assert save(a_checkpoint(seconds=99.0), saved.parent, NAME) == saved
    assert (saved.stat().st_mtime_ns, saved.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize("links", [True, False])
def test_another_result_under_the_same_name_is_kept_beside(
    saved: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
    for number in (1, 2):
        old = saved.read_bytes()
        save(a_checkpoint(state={"mu": torch.full((3, 8), float(number))}), saved.parent, NAME)
        assert saved.with_name(f"{saved.name}.old-{number}").read_bytes() == old
        assert load(saved).state["mu"][0, 0] == number


def test_a_damaged_file_under_the_name_is_kept_beside(saved: Path) -> None:
    saved.write_bytes(b"damaged")
    save(a_checkpoint(), saved.parent, NAME)
    assert load(saved).epoch == 4
    assert saved.with_name(f"{saved.name}.old-1").read_bytes() == b"damaged"


# A disk that does not take it


def fail_with(number: int) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("links", [True, False])
def test_a_full_or_broken_disk_is_one_line_and_leaves_older_checkpoints_intact(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, links: bool
) -> None:
    before = saved.read_bytes()
    if not links:
        monkeypatch.setattr(os, "link", fail_with(errno.EPERM))
    monkeypatch.setattr(os, call, fail_with(number))
    for epoch in (4, 5):  # the first changes the content under the existing name
        with pytest.raises(RunError) as caught:
            save(a_checkpoint(train_mean_l2=1.0), saved.parent, name_of(CONFIG, epoch, 12.5))
        assert str(saved.parent) in str(caught.value)
        assert os.strerror(number) in str(caught.value)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_folder_that_turns_read_only_in_mid_write_is_said_and_what_stays_is_cleaned(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as closed:
        for call in ("replace", "unlink"):
            closed.setattr(os, call, fail_with(errno.EPERM))
        with pytest.raises(RunError, match=rf"cannot be written \({os.strerror(errno.EPERM)}\)"):
            save(a_checkpoint(), saved.parent, name_of(CONFIG, 5, 12.5))
    assert len(os.listdir(saved.parent)) == 2
    monkeypatch.setattr(atomic, "is_alive", lambda pid: False)  # as if this process had ended
    assert clean_temporaries(saved.parent) == 1
    assert os.listdir(saved.parent) == [saved.name]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple["subprocess.CompletedProcess[str]", Path]:
    """A process that may write 300 kB a file and tries more, then may and is killed while it writes another."""
    folder = tmp_path_factory.mktemp("ended")
    save(a_checkpoint(), folder, NAME)
    program = f"""
import os, resource, signal, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from test_checkpoint_file import CONFIG, RunError, a_checkpoint, name_of, save, torch
large, folder = a_checkpoint(state={{"W": torch.ones(200_000), "mu": torch.ones(50)}}), Path({str(folder)!r})
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, most))
try:
    save(large, folder, name_of(CONFIG, 5, 1.0))
except RunError as error:
    print(error, os.listdir(folder), sep="\\n", flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
save(large, folder, name_of(CONFIG, 6, 1.0))
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60), folder


def test_a_limit_on_the_files_size_is_one_line_and_leaves_nothing(
    ended: tuple["subprocess.CompletedProcess[str]", Path],
) -> None:
    done, folder = ended
    line, listed = done.stdout.splitlines()
    assert line == f"{folder / name_of(CONFIG, 5, 1.0).format()}: cannot be written ({os.strerror(errno.EFBIG)})"
    assert listed == f"['{NAME.format()}']"
    assert done.stderr == ""


def test_a_killed_process_leaves_older_checkpoints_intact_and_its_rest_is_cleaned(
    ended: tuple["subprocess.CompletedProcess[str]", Path],
) -> None:
    done, folder = ended
    assert done.returncode == -9
    (rest,) = (name for name in os.listdir(folder) if name != NAME.format())
    assert rest.startswith(".tmp-")
    assert clean_temporaries(folder) == 1
    assert os.listdir(folder) == [NAME.format()]
    assert load(folder / NAME.format()).epoch == 4


def test_an_interrupt_while_writing_is_an_interrupt_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.FileIO):
        def write(self, data: Any) -> int:
            raise KeyboardInterrupt

    def open_interrupted(path: Any, mode: str = "r", *rest: Any) -> Any:
        return Interrupted(path, "x+") if mode == "x+b" else open(path, mode, *rest)

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", open_interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(a_checkpoint(), tmp_path, NAME)
    assert not os.listdir(tmp_path)


def test_what_does_not_read_back_is_not_given_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "save", lambda content, sink: sink.write(b"PK\x03\x04 half of it"))
    with pytest.raises(RunError, match="does not read back"):
        save(a_checkpoint(), tmp_path, NAME)
    assert not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_written_is_found_up_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new" / "folder")
    assert not os.listdir(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="checkpoints cannot be written here"):
            check_writable(folder)
        with pytest.raises(RunError, match="cannot be written"):
            save(a_checkpoint(), folder, NAME)
    for number in (errno.EACCES, errno.EROFS, errno.ENOSPC):  # rightly named, and the system refuses
        monkeypatch.setattr("builtins.open", fail_with(number))
        with pytest.raises(RunError, match=os.strerror(number)):
            check_writable(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_found_up_front(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match=os.strerror(errno.EACCES)):
        check_writable(tmp_path)


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    stop, seen, failed = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            for path in tmp_path.glob("*.pkl"):
                try:
                    seen.append(load(path).epoch)
                except InputError as error:
                    failed.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(15):
        save(a_checkpoint(state={"W": torch.full((20_000,), float(number))}), tmp_path, NAME)
    while not seen and reader.is_alive():
        time.sleep(0.01)
    stop.set()
    reader.join()
    assert seen
    assert not failed


def test_only_temporaries_of_dead_processes_of_this_machine_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    mine = temporary_path(tmp_path)
    dead = mine.with_name(mine.name.replace(str(os.getpid()), str(process.pid), 1))
    elsewhere = tmp_path / f".tmp-{process.pid}-000000-abc"
    for path in (mine, dead, elsewhere, tmp_path / ".tmp-notes", tmp_path / ".tmp-99999999999-abcdef-1"):
        path.touch()
    assert clean_temporaries(tmp_path) == 1
    assert not dead.exists()
    assert len(os.listdir(tmp_path)) == 4
    os.utime(elsewhere, (time.time() - ABANDONED - 1,) * 2)  # nobody writes to a temporary file for so long
    assert clean_temporaries(tmp_path) == 1
    assert not elsewhere.exists()
    assert clean_temporaries(tmp_path / "none") == 0


# Files that are no checkpoints


def test_a_missing_checkpoint_names_the_nearest(saved: Path) -> None:
    assert f"did you mean '{saved.name}'" in refusal(saved.with_name(saved.name.replace("K3", "K4")))
    assert "no such checkpoint" in refusal(saved.parent / "none" / "x.pkl")


def test_what_is_not_even_a_file_is_refused(tmp_path: Path) -> None:
    assert "a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe.pkl")
    assert "not a file" in refusal(tmp_path / "pipe.pkl")
    with pytest.raises(InputError, match="cannot be read"):
        load(Path("a\0b"))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "empty"),
        (b"hello", "not a checkpoint"),
        (b"\x80\x02}q\x00.", "not a checkpoint"),
        (b"PK\x03\x04", "cut short"),
        (b"PK\x03\x04" + bytes(200), "cut short"),
        (b"PK\x05\x06" + bytes(18), "not a checkpoint"),
        (b"PK\x03\x04" + bytes(100) + b"PK\x05\x06" + b"\xff" * 16 + bytes(2), "too many parts"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, line: str) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(content)
    assert line in refusal(path)


def test_files_of_other_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    torch.save({"mu": torch.ones(2)}, path)
    assert "another program" in refusal(path)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "refused" in refusal(path)
    torch.save({"mu": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    assert "not a checkpoint" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b.txt", "text")
    assert "zip file of another kind" in refusal(path)
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    assert refusal(tmp_path / "x.npz")


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for share in range(0, 100, 5):
        saved.write_bytes(whole[: len(whole) * share // 100])
        assert any(word in refusal(saved) for word in ("cut short", "empty"))
    saved.write_bytes(whole[:-1])
    assert "cut short" in refusal(saved)


@pytest.mark.parametrize("signed", [True, False])
def test_a_flipped_bit_anywhere_is_refused_or_harmless(saved: Path, signed: bool) -> None:
    if not signed:
        resaved(saved, lambda content: None)
    whole, truth = saved.read_bytes(), vars(load(saved))
    # Without a checksum of the whole, the zip's own headers have none: the last two thousand bytes above all.
    draw, size = random.Random(0), len(whole)
    places = [draw.randrange(size) for _ in range(150)] + [size - 1 - draw.randrange(2000) for _ in range(150)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        saved.write_bytes(flipped)
        try:
            loaded = vars(load(saved))
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert not signed, place
            assert same(truth, loaded), place


def test_a_member_marked_as_a_folder_is_refused(saved: Path) -> None:
    # Found by flipping every bit: zipfile reads such a member, torch hands out uninitialised memory in its place.
    resaved(saved, lambda content: None)
    whole = bytearray(saved.read_bytes())
    entry = whole.rindex(b"/data/0")
    start = whole.rindex(b"PK\x01\x02", 0, entry)
    whole[start + 38] |= 0x10
    saved.write_bytes(whole)
    assert "marked as a folder" in refusal(saved)


@pytest.mark.parametrize("version", [0, 2, 99, "1", None, True, 1.0])
def test_another_format_version_is_refused_with_the_versions_that_are_read(saved: Path, version: object) -> None:
    line = refusal(resaved(saved, lambda content: content.update(format_version=version)))
    assert f"reads only version {FORMAT_VERSION}" in line


@pytest.mark.parametrize("key", [*vars(a_checkpoint())])
def test_a_missing_field_is_named(saved: Path, key: str) -> None:
    assert f"'{key}' is missing" in refusal(resaved(saved, lambda content: content.pop(key)))


WRONG: dict[str, list[Any]] = {
    "config": [None, [], {1: 2}, {"K": torch.ones(1)}],
    "state": [None, {"W": 1.0}, {"W": torch.tensor(float("inf"))}, {1: torch.ones(1)}],
    "history": [None, {}, [1], [{"a": "b"}], [{1: 1.0}], [{"a": torch.ones(1)}]],
    "epoch": [None, -1, 1.0, True, "4", torch.ones(1)],
    "mean_l2": [None, -1.0, float("nan"), float("inf"), "12.5", True],
    "train_mean_l2": [-1.0, float("nan"), "12.5"],
    "seconds": [None, float("inf"), "1"],
    "data": [None, {"x": torch.ones(1)}],
    "provenance": [None, "here"],
    "trainer_state": [None, [1]],
    "extras": [None, {"x": torch.ones(1).expand(10**15)}, {"x": torch.ones(2, device="meta")}],
    "unknown": [1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_field_of_a_wrong_type_is_refused(saved: Path, key: str, value: Any) -> None:
    line = refusal(resaved(saved, lambda content: content.update({key: value})))
    assert key in line or "refused" in line


def test_nests_without_end_are_refused_without_walking_them(saved: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    wide: Any = [0] * 10
    for _ in range(15):
        wide = [wide] * 10  # 10^16 values to walk, 150 to write
    for nest in (endless, wide):
        start = time.process_time()
        refusal(resaved(saved, lambda content, nest=nest: content.update(extras={"x": nest})))
        assert time.process_time() - start < 8


# Hostile files


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


def hostile(marker: Path) -> Iterator[tuple[str, bytes]]:
    content = {**pack(a_checkpoint()), "extras": {"x": Evil(marker)}}
    for protocol in (0, 1, 2, 4, 5):
        yield f"pickle-{protocol}", pickle.dumps(content, protocol=protocol)
    for protocol in (2, 4):
        buffer = io.BytesIO()
        torch.save(content, buffer, pickle_protocol=protocol)
        yield f"torch-{protocol}", buffer.getvalue()
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    yield "torch-legacy", buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(content))
        archive.writestr("a/version", "3\n")
        archive.writestr("a/constants.pkl", pickle.dumps(content))
        archive.writestr("a/code/__torch__.py", f"open({str(marker)!r}, 'w')")
    yield "zip", buffer.getvalue()


def test_a_hostile_pickle_does_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Evil(marker))).close()
    assert marker.exists()  # it would work
    marker.unlink()
    for name, data in hostile(marker):
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(data)
        refusal(path)
        assert not marker.exists(), name


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x08" + struct.pack("<q", 10**14) + b"\x85R.",  # bytearray(10^14)
        b"\x80\x02ctorch\nTensor\n\x8a\x08" + struct.pack("<q", 10**14) + b"\x85R.",
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
        b"\x80\x02(ios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of 2^31 entries
        b"\x80\x02X\xff\xff\xff\x7fabc.",  # a text of 2 GB
        b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
        b"\x80\x02\x85\x85.",
        b"\x80\x02.",
        b"\xff\xfe",
        b"",
    ],
)
def test_a_hostile_program_in_the_pickle_is_refused(saved: Path, program: bytes) -> None:
    start = time.process_time()
    refusal(rezipped(saved, lambda name, data: program if name.endswith("/data.pkl") else data))
    assert time.process_time() - start < 2


def test_declared_sizes_beyond_the_file_allocate_nothing(tmp_path: Path) -> None:
    path = save(a_checkpoint(extras={"x": torch.zeros(200)}), tmp_path, NAME)
    huge = b"\x8a\x08" + struct.pack("<q", 10**13)

    def declare(name: str, data: bytes) -> bytes:
        if not name.endswith("/data.pkl"):
            return data
        assert data.count(b"K\xc8") >= 2  # as the storage's size, and as the shape
        return data.replace(b"K\xc8", huge)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "not a checkpoint that can be read" in refusal(rezipped(path, declare))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_zip_bomb_is_refused_unopened(saved: Path) -> None:
    rezipped(saved, lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(saved)
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(50_000_000))
    assert "compressed" in refusal(saved)


def test_a_zip_of_too_many_or_overlapping_parts_is_refused(saved: Path) -> None:
    with zipfile.ZipFile(saved, "w") as archive:
        for number in range(10_001):
            archive.writestr(f"a/{number}", b"")
    assert "too many parts" in refusal(saved)
    with zipfile.ZipFile(saved, "w") as archive:
        archive.writestr("a/data.pkl", bytes(5_000))
        for number in range(50):
            archive.writestr(f"a/{number}", b"")
    raw = bytearray(saved.read_bytes())
    table = raw.index(b"PK\x01\x02")
    numbers, at = bytes(raw[table + 16 : table + 28]), table  # checksum and sizes of the first member
    while (at := raw.find(b"PK\x01\x02", at)) >= 0:  # every entry of the table points at the first member
        raw[at + 16 : at + 28], raw[at + 42 : at + 46] = numbers, bytes(4)
        at += 46
    saved.write_bytes(raw)
    assert "overlap" in refusal(saved)


def test_no_warning_leaks(saved: Path) -> None:
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        load(saved)
        save(a_checkpoint(), saved.parent, NAME)
    assert not leaked


# Names and contents, folders


def test_a_name_that_disagrees_with_the_content_is_reported(saved: Path) -> None:
    checkpoint = load(saved)
    assert compare_name(saved, checkpoint) is None
    other = CheckpointName(**{**vars(NAME), "K": 4, "mean_l2": 12.4, "config_id": "abcdef", "lr": 0.1, "task": "mnist"})
    line = compare_name(saved.with_name(other.format()), checkpoint)
    assert line is not None
    for part in (
        "K 4 for 3",
        "mean L2 12.40000 for 12.50000",
        "lr 0.1 for 0.001",
        "task mnist for subspaces",
        "config",
    ):
        assert part in line
    assert "not the name of a checkpoint" in str(compare_name(Path("best.pkl"), checkpoint))
    original = (
        "-S28-tasksubspaces-shuffle1-embed-dim2-kernel-size3-model-nameLLGAE-beta0.01-n-step5-loglr-3.0_4_12.50000.pkl"
    )
    assert compare_name(Path(original), checkpoint) is None
    assert "epoch 5 for 4" in str(compare_name(Path(original.replace("_4_", "_5_")), checkpoint))


def test_a_task_of_the_users_own_agrees_with_its_slug(tmp_path: Path) -> None:
    config = Config(task="npy:/data/my set.npy", lr=1.23456789e-4)
    path = save(a_checkpoint(config=config.plain(), mean_l2=1 / 3), tmp_path, name_of(config, 4, 1 / 3))
    assert compare_name(path, load(path)) is None


def test_the_last_checkpoint_of_a_config_has_its_most_epochs(tmp_path: Path) -> None:
    for epoch, value in ((9, 3.0), (10, 2.0), (10, 1.0)):
        path = tmp_path / name_of(CONFIG, epoch, value).format()
        path.touch()
        os.utime(path, (epoch, 100 - value))
    other = Config(task="subspaces", K=4)
    (tmp_path / name_of(other, 99, 1.0).format()).touch()
    (tmp_path / "notes.pkl").touch()
    assert find_last(tmp_path, CONFIG).name == name_of(CONFIG, 10, 1.0).format()
    with pytest.raises(InputError, match="other configs there: 4"):
        find_last(tmp_path, Config(seed=5))
    with pytest.raises(InputError, match="other configs there: 0"):
        find_last(tmp_path / "none", CONFIG)


def test_provenance_names_the_versions_and_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))  # temporary files may lie in a repository
    versions = provenance()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == torch.__version__
    assert versions["git_commit"] is None
    assert versions["created"].endswith("+00:00")
    monkeypatch.setenv("PATH", "")
    assert provenance()["git_commit"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_provenance_has_the_commit_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], [*identity, "commit", "-q", "--no-verify", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", *command], check=True)
    assert len(str(provenance()["git_commit"])) == 40
