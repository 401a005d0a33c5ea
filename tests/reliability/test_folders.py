"""Folders that others may write in: links, pipes, edited records, a second user; and what files give away."""

import json
import os
import platform
import pty
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import FAST, Command, check_refused  # tests/command_line.py
from sweeping_helper import write_sweep_file

from llgae_cli import regular_files
from llgae_cli.bench.output import save as save_bench
from llgae_cli.config import Config, read_config
from llgae_cli.errors import InputError
from llgae_cli.regular_files import open_own
from llgae_cli.storage import Lock, clean_locks, compare_name, find_last, load, make_folder
from llgae_cli.storage.processes import machine
from llgae_cli.sweep import SweepFolder, read_plan
from llgae_cli.sweep.cell import run_cell
from llgae_cli.sweep.process import Share, spawn

pytestmark = pytest.mark.slow
PRECIOUS = b"the only copy\n"
NOBODY = 65534
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="becoming a second user takes root")
SECONDS = 120  # after which a test that waits for a pipe has failed


@pytest.fixture(autouse=True)
def _never_waiting() -> Iterator[None]:
    """No file makes anything wait for ever."""

    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---- Links and other things under the name of a file of ours


def link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def dangling_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious.with_name("nothing yet"))


def hard_link(path: Path, precious: Path) -> None:
    os.link(precious, path)


def pipe(path: Path, precious: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, precious: Path) -> None:
    path.mkdir()


ATTACKS: dict[Callable[[Path, Path], None], str] = {
    link: "a symbolic link",
    dangling_link: "a symbolic link",
    hard_link: "a file with 2 names",
    pipe: "a named pipe",
    folder: "a folder",
}


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file that has nothing to do with llgae, and is the same afterwards."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "precious"
    path.write_bytes(PRECIOUS)
    yield path
    assert path.read_bytes() == PRECIOUS and os.listdir(path.parent) == ["precious"]


def sweep_file(**more: Any) -> Path:
    return write_sweep_file(Path("s.yaml"), grid={"K": [2]}, base={"embed-dim": 2, "epochs": 1}, **more)


def cell_folder(file: Path, out: Path = Path("out")) -> Path:
    (cell,) = read_plan(file).cells
    return SweepFolder(out).cell_folder(cell.id)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("place", ["lock", "cell/lock", "cell/log.txt"])
def test_a_sweep_writes_to_no_file_but_its_own(
    llgae: Command,
    precious: Path,
    attack: Callable[[Path, Path], None],
    place: str,
) -> None:
    file = sweep_file()
    path = Path("out/lock") if place == "lock" else cell_folder(file) / Path(place).name
    path.parent.mkdir(parents=True)
    attack(path, precious)
    said = llgae("sweep", "--config", file, "--out", "out")
    check_refused(said, str(path), ATTACKS[attack], "remove it, or choose another folder")
    assert os.path.lexists(path) and not list(Path("out").rglob("*.pkl"))


def test_a_cells_folder_is_no_link(llgae: Command, precious: Path) -> None:
    file = sweep_file()
    cell = cell_folder(file)
    cell.parent.mkdir(parents=True)
    cell.symlink_to(precious.parent)
    check_refused(llgae("sweep", "--config", file, "--out", "out"), str(cell), "a symbolic link", "remove it")


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_link_that_comes_after_the_check_is_refused_too(
    tmp_path: Path, precious: Path, attack: Callable[[Path, Path], None]
) -> None:
    cell = tmp_path / "cell"
    cell.mkdir()
    (cell / "config.yaml").write_text(FAST)
    attack(cell / "lock", precious)
    attack(cell / "log.txt", precious)
    with pytest.raises(InputError, match="remove it, or choose another folder"):
        run_cell(cell)
    with pytest.raises(InputError, match="remove it, or choose another folder"):
        spawn(cell, None, False, Share(1))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_a_runs_lock_is_no_link(
    llgae: Command,
    tmp_path: Path,
    precious: Path,
    attack: Callable[[Path, Path], None],
) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    lock = Lock.of_run(checkpoints, read_config([Path("fast.yaml")]))
    attack(lock.path, precious)
    check_refused(llgae("train", "-c", "fast.yaml"), lock.path.name, ATTACKS[attack], "remove it")
    assert os.listdir(checkpoints) == [lock.path.name] and clean_locks(checkpoints) == 0


def test_cleaning_locks_removes_nobody_elses_files(tmp_path: Path, precious: Path) -> None:
    for name in (".lock-notes", ".lock-S1-cfgabc", ".lock-S1-cfgabcdefabcdef"):
        (tmp_path / name).write_bytes(PRECIOUS)
    (tmp_path / ".lock-S1-cfgabcdef").write_text("1 abcdef\n")  # an older llgae's
    (tmp_path / ".lock-S1-cfg0123456789").write_text("1 abcdef\n")
    (tmp_path / ".lock-S2-cfg0123456789").symlink_to(precious)
    assert clean_locks(tmp_path) == 2 and len(list(tmp_path.glob(".lock-*"))) == 4


def test_a_device_or_a_socket_is_no_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(InputError, match="a socket"):
            open_own(Path("s"), os.O_RDWR | os.O_CREAT)
    with pytest.raises(InputError, match="a device"):
        open_own(Path(os.devnull), os.O_RDWR | os.O_CREAT)


def test_an_emptying_open_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(PRECIOUS)
    with pytest.raises(AssertionError):
        open_own(tmp_path / "f", os.O_WRONLY | os.O_TRUNC)
    assert (tmp_path / "f").read_bytes() == PRECIOUS


def test_files_that_are_written_whole_replace_a_link(tmp_path: Path, precious: Path) -> None:
    build = tmp_path / "build"
    build.mkdir()
    for name in ("bench.json", "bench.png"):
        (build / name).symlink_to(precious)
    growth = [
        {"bench": name, "at": 1, "value": 1.0, "coding": None}
        for name in ("growth over K", "growth over E", "growth over N")
    ]
    save_bench({"machine": "m", "rows": growth}, build)
    assert json.loads((build / "bench.json").read_text())["machine"] == "m"
    assert not any(path.is_symlink() for path in build.iterdir()) and (build / "bench.png").stat().st_size > 1000


# ---- Two users, one folder


SECOND = """
import os, sys
import filelock, llgae_cli.cli.app, llgae_cli.experiment, llgae_cli.sweep  # while they can be read
os.setgroups([])
os.setgid({nobody})
os.setuid({nobody})
os.chdir(sys.argv.pop(1))
llgae_cli.cli.app.main()
"""


def by_nobody(where: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line as a second user."""
    command = [sys.executable, "-c", SECOND.format(nobody=NOBODY), str(where), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder in which everybody may write; pytest's own may not be entered by others."""
    where = Path(tempfile.mkdtemp(prefix="llgae-shared-"))
    where.chmod(0o777)
    (where / "fast.yaml").write_text(FAST + "threads: 1\n")
    (where / "fast.yaml").chmod(0o644)
    yield where
    shutil.rmtree(where)


@ROOT_ONLY
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["open", "sticky"])
def test_a_second_user_sees_the_first_ones_lock(shared: Path, mode: int) -> None:
    checkpoints = shared / "checkpoints"
    checkpoints.mkdir()
    checkpoints.chmod(mode)
    lock = Lock.of_run(checkpoints, read_config([shared / "fast.yaml"]))
    assert lock.attempt()
    lock.path.chmod(0o644)
    said = by_nobody(shared, "train", "-c", "fast.yaml", "-q")
    check_refused(said, f"process {os.getpid()} is already training this config")
    assert not list(checkpoints.glob("*.pkl"))
    name = lock.path
    lock.release()
    name.write_text("1 abcdef\n")  # what a run of the first user that was killed would leave
    name.chmod(0o644)
    said = by_nobody(shared, "train", "-c", "fast.yaml", "-q")
    assert said.returncode == 0, said.stderr
    assert "no locks" not in said.stderr and len(list(checkpoints.glob("*.pkl"))) == 1
    assert name.exists() == (mode == 0o1777)  # which nobody but its owner may remove there


@ROOT_ONLY
def test_a_lock_that_a_second_user_may_not_even_read_is_one_line(shared: Path) -> None:
    checkpoints = shared / "checkpoints"
    checkpoints.mkdir()
    checkpoints.chmod(0o777)
    lock = Lock.of_run(checkpoints, read_config([shared / "fast.yaml"]))
    lock.path.touch()
    lock.path.chmod(0o600)
    check_refused(by_nobody(shared, "train", "-c", "fast.yaml", "-q"), lock.path.name, "belongs to another user")


@ROOT_ONLY
def test_a_second_user_sees_the_first_ones_sweep(shared: Path) -> None:
    write_sweep_file(shared / "s.yaml", grid={"K": [2]}, base={"embed-dim": 2})
    (shared / "s.yaml").chmod(0o644)
    (shared / "out").mkdir()
    (shared / "out").chmod(0o777)
    with SweepFolder(shared / "out").lock():
        (shared / "out" / "lock").chmod(0o644)
        said = by_nobody(shared, "sweep", "--config", "s.yaml", "--out", "out", "-q")
        check_refused(said, f"another sweep is at work here (process {os.getpid()})")


def test_a_lock_is_taken_on_a_descriptor_that_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As the tests above, for a plain user: the file may be read and not written.
    path = tmp_path / "lock"
    path.touch()
    opened = os.open

    def refusing(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        if Path(name) == path and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(13, "Permission denied")
        return opened(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr(os, "unlink", lambda name: refusing(path, os.O_RDWR))
    first, second = Lock(path), Lock(path)
    assert first.attempt() and first.supported
    assert not second.attempt() and second.holder == "another process"  # it may not write who it is
    first.release()
    assert second.attempt() and second.supported
    second.release()
    assert path.exists()


def test_a_lock_names_no_machine_and_goes_with_its_holder(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.attempt() and lock.path.read_text() == f"{os.getpid()} {machine()}\n"
    assert re.fullmatch(r"[0-9a-f]{6}", machine()) and platform.node() not in lock.path.read_text()
    lock.release()
    assert os.listdir(tmp_path) == []


# ---- Pipes and edited records


RUNG = {
    "checkpoint": "S28.pkl", "mean_l2": 2.0, "train_mean_l2": 1.0, "validation_mean_l2": 2.0, "epoch": 1,
    "seconds": 1.0, "threads": 1,
}  # fmt: skip
RESULT = {**RUNG, "bits_float": 65.0, "bits_k": 1.0, "bits_coded": 9.0, "mean_l2_coded": 2.1, "step": 0.5}
FAILURE = {"reason": "exit code 1", "last_line": "llgae: no"}
HALVED = {"base": {"embed-dim": 2, "trainer": "gradient", "epochs": 3, "validation": 0.1}, "halving": {"rungs": [1]}}
RECORDS = {"result.json": RESULT, "rung-1.json": RUNG, "failed.json": FAILURE}


def a_done_sweep() -> tuple[Path, Path]:
    """A sweep file of one cell that halves, and the folder of the cell, which is done."""
    file = write_sweep_file(Path("s.yaml"), grid={"K": [2]}, **HALVED)
    cell = cell_folder(file)
    cell.mkdir(parents=True)
    (cell / "config.yaml").write_text("K: 2\n")
    for name in ("result.json", "rung-1.json"):
        (cell / name).write_text(json.dumps(RECORDS[name]))
    return file, cell


def test_a_sound_record_is_read_with_what_later_versions_add(llgae: Command) -> None:
    file, cell = a_done_sweep()
    (cell / "result.json").write_text(json.dumps({**RESULT, "validation_mean_l2": 2, "hue": "red"}))
    said = llgae("sweep", "--config", file, "--out", "out", "--resume", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)[0]["hue"] == "red" and json.loads(said.out)[0]["bits_coded"] == 9.0


def edits(record: dict[str, Any]) -> Iterator[str]:
    """The record as nobody but a person or another program leaves it."""
    yield from ("", "{", "{}", "[]", "3", "null", '"text"', "[" * 100_000, '{"mean_l2": 1', "\ufeff{}", "1" * 5000)
    for key in record:
        yield json.dumps({name: value for name, value in record.items() if name != key})
    for value in ("text", [1], {}, float("nan"), float("inf"), -1, True, 10**400, "x" * 20_000):
        for key in record:
            good = isinstance(record[key], str) and value == "text"
            if not good:
                yield json.dumps({**record, key: value})
    for value in ([1], {"a": 1}, float("nan"), 10**400):
        yield json.dumps({**record, "more": value})
    if "checkpoint" in record:
        for name in ("../x.pkl", "/etc/passwd", "", "a\0b"):
            yield json.dumps({**record, "checkpoint": name})
        yield json.dumps({**record, "validation_mean_l2": None})
    yield json.dumps({**record, "more": "x"}) + " " * 100_000


@pytest.mark.parametrize("name", RECORDS)
def test_an_edited_record_is_one_line(llgae: Command, name: str) -> None:
    file, cell = a_done_sweep()
    if name == "failed.json":
        (cell / "result.json").unlink()
    for text in edits(RECORDS[name]):
        (cell / name).write_text(text)
        said = llgae("sweep", "--config", file, "--out", "out", "--resume", "-q")
        check_refused(said, f"{cell / name}: ", "remove the file to run this cell again")
    (cell / name).write_bytes(b"\xff\xfe{")
    check_refused(llgae("sweep", "--config", file, "--out", "out", "--resume", "-q"), name, "not a text file")


@pytest.mark.parametrize("name", RECORDS)
def test_a_pipe_or_a_folder_in_place_of_a_record_is_one_line(llgae: Command, name: str) -> None:
    file, cell = a_done_sweep()
    (cell / name).unlink(missing_ok=True)
    os.mkfifo(cell / name)
    check_refused(llgae("sweep", "--config", file, "--out", "out", "--resume", "-q"), name, "a named pipe, not a file")
    (cell / name).unlink()
    (cell / name).mkdir()
    check_refused(llgae("sweep", "--config", file, "--out", "out", "--resume", "-q"), name, "a folder")


RESULTS = [
    "", "{", "{}", "3", "null", '"rows"', "[1]", "[[]]", '{"rows": 3}', '{"rows": null}', '{"rows": [3]}',
    '{"rows": [], "failed": 3}', '{"rows": [], "failed": [3]}', '{"rows": [], "failed": [{"label": 3}]}',
    '{"rows": [], "swept": "K"}', '{"rows": [], "swept": [3]}', '{"rows": [], "ranked_by": []}',
    '[{"mean_l2": "2.0"}]', '[{"mean_l2": NaN}]', '[{"mean_l2": Infinity}]', '[{"mean_l2": -1}]', '[{"mean_l2": true}]',
    '[{"mean_l2": 1, "checkpoint": 3}]', '[{"mean_l2": 1, "K": [1]}]', '[{"mean_l2": 1, "K": {"a": 1}}]',
    '[{"mean_l2": 1, "K": NaN}]', '[{"mean_l2": 1, "K": 1' + "0" * 400 + "}]", "[" * 100_000, "1" * 5000,
]  # fmt: skip


def test_an_edited_leaderboard_is_one_line(llgae: Command) -> None:
    Path("out").mkdir()
    path = Path("out/results.json")
    for text in RESULTS:
        path.write_text(text)
        check_refused(llgae("report", "out", "-o", "r.html"), "results.json: ")
    path.write_bytes(b"\xff\xfe[]")
    check_refused(llgae("report", "out", "-o", "r.html"), "not a text file")
    path.unlink()
    os.mkfifo(path)
    check_refused(llgae("report", "out", "-o", "r.html"), "results.json: ", "a named pipe, not a file")
    assert not Path("r.html").exists()


def test_a_pipe_in_place_of_a_sweeps_picture_is_left_out(llgae: Command) -> None:
    Path("out/figures").mkdir(parents=True)
    os.mkfifo("out/figures/mean_l2.png")
    Path("out/results.json").write_text('[{"mean_l2": 1.0, "K": 1}]')
    assert llgae("report", "out", "-o", "r.html").code == 0


def test_a_pipe_in_place_of_codes_is_one_line(llgae: Command, tmp_path: Path) -> None:
    saved = json.loads(llgae("train", "-c", "fast.yaml", "--json", "-q").out)["checkpoint"]
    os.mkfifo("codes.npz")
    check_refused(llgae("decode", saved, "codes.npz", "-o", "x.npy"), "codes.npz", "a named pipe, not a file")


def test_a_config_may_come_through_a_pipe_that_somebody_writes_to(
    llgae: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    os.mkfifo("c.yaml")
    for command in (["config", "-c"], ["train", "-c"], ["sweep", "-c"]):
        check_refused(llgae(*command, "c.yaml"), "c.yaml", "a pipe that nothing is written to")
    reading, writing = os.pipe()
    os.write(writing, b"K: 7\n")
    os.close(writing)
    said = llgae("config", "-c", f"/dev/fd/{reading}", "--json")
    assert said.code == 0 and json.loads(said.out)["K"] == 7
    os.close(reading)
    reading, writing = os.pipe()
    monkeypatch.setattr(regular_files, "PIPE_PATIENCE", 0.01)
    check_refused(llgae("config", "-c", f"/dev/fd/{reading}"), "whose writer was silent")
    os.write(writing, b"#" * 1000)
    check_refused(llgae("config", "-c", f"/dev/fd/{reading}"), "whose writer was silent")
    os.close(reading)
    os.close(writing)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_process_substitution_and_standard_input_are_configs(tmp_path: Path) -> None:
    script = f"{sys.executable} -m llgae_cli config --json -c <(sleep 0.2; echo K: 5) -c /dev/stdin <<< 'embed-dim: 3'"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["K"] == 5 and json.loads(done.stdout)["embed-dim"] == 3


# ---- Configs whose digits agree by chance


COLLIDING = (0.0001951, 0.0007452)  # of FAST, tol: six digits of both identities are 82baf9


def test_a_run_is_not_given_another_configs_checkpoint(llgae: Command, tmp_path: Path) -> None:
    one, other = (read_config([Path("fast.yaml")], [f"tol={tol}"]) for tol in COLLIDING)
    assert one.identity()[:6] == other.identity()[:6] and one.identity() != other.identity()
    assert re.fullmatch(r"[0-9a-f]{10}", one.identity())
    saved = Path(
        json.loads(llgae("train", "-c", "fast.yaml", "-S", f"tol={COLLIDING[0]}", "--json", "-q").out)["checkpoint"]
    )
    assert f"-cfg{one.identity()}_" in saved.name
    for digits in (other.identity()[:6], other.identity()):  # an older name, and ten digits that agree by chance
        named = saved.rename(saved.with_name(saved.name.replace(one.identity(), digits)))
        said = llgae("train", "-c", "fast.yaml", "-S", f"tol={COLLIDING[1]}", "--resume", "last")
        check_refused(said, "no checkpoint of this config", "other configs there: 1")
        named.rename(saved)


BY_CLOSED_FORM = ("restarts", "moves", "tol", "candidates", "shrinkage")  # keys that are errors by gradient


def test_a_checkpoint_with_six_digits_in_its_name_goes_on(llgae: Command) -> None:
    config = read_config([Path("fast.yaml")])
    fast = [line for line in Path("fast.yaml").read_text().splitlines() if line.split(":")[0] not in BY_CLOSED_FORM]
    Path("gradient.yaml").write_text("\n".join([*fast, "trainer: gradient", ""]))
    said = llgae("train", "-c", "gradient.yaml", "-S", "epochs=1", "--json", "-q")
    saved = Path(json.loads(said.out)["checkpoint"])
    identity = load(saved) and read_config([Path("gradient.yaml")]).identity()
    old = saved.rename(saved.with_name(saved.name.replace(identity, identity[:6])))
    assert compare_name(old, load(old)) is None
    assert f"config {'0' * 6} for {identity[:6]}" in str(
        compare_name(old.with_name(old.name.replace(identity[:6], "0" * 6)), load(old))
    )
    assert json.loads(llgae("runs", "checkpoints", "--json").out)[0]["config_id"] == identity[:6]
    said = llgae("train", "-c", "gradient.yaml", "--resume", "last")
    assert said.code == 0 and f"resumed after epoch 1 from {old}" in said.err
    assert {path.name.count(f"-cfg{identity}_") for path in Path("checkpoints").iterdir()} == {0, 1}
    with pytest.raises(InputError, match="no checkpoint of this config"):
        find_last(Path("checkpoints"), config)  # the closed form's


def test_a_key_that_a_stored_config_lacks_had_its_default(tmp_path: Path) -> None:
    from llgae_cli.storage import changed_keys

    config = Config(task="subspaces")
    stored = config.plain()
    for key in ("prior", "tol", "K"):
        del stored[key]
    assert changed_keys(stored, config) == {}
    assert changed_keys(stored, Config(task="subspaces", prior="gaussian")) == {"prior": ("uniform", "gaussian")}


# ---- What standard output cannot encode


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_path_that_standard_output_cannot_encode_ends_no_run(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "c.yaml").write_text(FAST)
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "80"}

    def run(*arguments: str, **streams: Any) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "llgae_cli", *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        return subprocess.run(command, cwd=tmp_path, env=environment, check=False, **streams)

    done = run("train", "-c", "c.yaml", "-S", "checkpoint-dir=\u0142\u00f3d\u017a")
    assert done.returncode == 0, done.stderr
    assert rb"checkpoint  \u0142" in done.stdout and b"Traceback" not in done.stderr
    done = run("eval", "\u0142/none.pkl")
    assert done.returncode == 2 and done.stderr.startswith(rb"llgae: \u0142/none.pkl: no such checkpoint")
    assert rb"\u0142" in run("runs", "\u0142\u00f3d\u017a", "--paths").stdout
    ours, theirs = pty.openpty()
    done = run("runs", "\u0142\u00f3d\u017a", "--paths", stdout=theirs)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert rb"\u0142" in os.read(ours, 100_000)
    os.close(ours)


# ---- Durable folders


def test_new_parent_folders_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    make_folder(tmp_path / "a" / "b" / "c")
    parents = [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
    assert flushed == [path.stat().st_ino for path in parents]
    make_folder(tmp_path / "a" / "b" / "c")
    assert len(flushed) == 3
    monkeypatch.chdir(tmp_path)
    make_folder(Path("d"))
    assert flushed[3:] == [tmp_path.stat().st_ino]


# ---- What files give away


def test_files_say_what_reproduces_a_run_and_not_where_it_was(llgae: Command, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    np.save("mine.npy", values)
    options = ["-S", f"task=npy:{tmp_path / 'mine.npy'}", "-S", f"checkpoint-dir={tmp_path / 'kept'}", "-S", "K=2"]
    said = llgae("train", "-c", "fast.yaml", *options, "--json", "-q")
    saved = Path(json.loads(said.out)["checkpoint"])
    stored = load(saved)
    assert stored.provenance["platform"] == f"{platform.system()} {platform.machine()}"
    assert stored.data["source"].startswith("mine.npy, in memory") and "checkpoint-dir" not in stored.config
    assert stored.config["task"] == f"npy:{tmp_path / 'mine.npy'}"  # `eval` finds the data by it
    assert llgae("eval", saved).code == 0
    plain = json.dumps([stored.provenance, stored.data["source"], {**stored.config, "task": ""}])
    for secret in (str(tmp_path), platform.node(), platform.release()):
        assert secret not in plain
    assert llgae("report", saved, "-o", "r.html").code == 0
    assert llgae("encode", saved, "-o", "codes.npz", "--task", "npy:mine.npy").code == 0
    page, codes = Path("r.html").read_bytes(), Path("codes.npz").read_bytes()
    for secret in (str(tmp_path), platform.release()):
        assert secret.encode() not in page and secret.encode() not in codes
    assert b"npy:mine.npy" in page


def test_a_sweep_makes_no_path_absolute(llgae: Command, tmp_path: Path) -> None:
    np.save("mine.npy", np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32))
    base = {"task": "npy:mine.npy", "embed-dim": 2, "epochs": 1}
    file = write_sweep_file(Path("s.yaml"), grid={"K": [1, 2]}, base=base)
    assert llgae("sweep", "--config", file, "--out", "out", "-q").code == 0
    assert llgae("report", "out", "-o", "r.html").code == 0
    files = [path for path in Path("out").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"results.csv", "results.json", "config.yaml", "log.txt", "result.json"} <= names and "lock" not in names
    for path in [*files, Path("r.html")]:
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert stat.S_ISREG(path.lstat().st_mode)
