"""Disks that fill, turn read-only or vanish under a run: one clear line, exit 1, and no good checkpoint is lost."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import BY_GRADIENT  # tests/command_line.py
from reliability_helper import ENDLESS, Started, check_same_run, last  # tests/reliability_helper.py

from llgae_cli.storage import load
from llgae_cli.tasks.subspaces import D

pytestmark = pytest.mark.slow
GRADIENT = BY_GRADIENT + "save-every: 1\n"


def check_failed(run: Started, *words: str) -> None:
    """Exit code 1, nothing on stdout, and a last line on stderr that has all the words."""
    code, err = run.wait(), run.said()
    assert code == 1 and run.out.read_text() == "", err
    assert "Traceback" not in err and "Exception ignored" not in err
    line = err.splitlines()[-1]
    assert line.startswith("llgae: ") and err.count("llgae: ") == 1
    for word in words:
        assert word in line, line


def check_intact(folder: Path, epochs: int) -> None:
    """Just the checkpoints of the first epochs are there, and each can be loaded."""
    assert sorted(load(path).epoch for path in folder.iterdir()) == list(range(1, epochs + 1))


def check_goes_on(folder: Path, config: Path, epochs: int) -> None:
    """Resumed, the run comes to what an undisturbed one comes to."""
    whole = config.parent / "whole"
    for where, *resume in ((folder, "--resume", "last"), (whole,)):
        with Started(config.parent, "train", "-c", config, "-q", "-S", f"checkpoint-dir={where}", *resume) as run:
            assert run.wait() == 0, run.said()
    check_same_run(last(whole, epochs), last(folder, epochs))


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system on the folder `disk`; a skip where that is not permitted."""
    folder, mounts = tmp_path / "disk", []
    folder.mkdir()

    def mounted(*options: str) -> Path:
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting takes root")
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
        mounts.append(options)
        return folder

    yield mounted
    for _ in mounts:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    config, folder = tmp_path / "c.yaml", tmp_path / "checkpoints"
    config.write_text(GRADIENT.replace("epochs: 3", "epochs: 5"))
    with Started(tmp_path, "train", "-c", "c.yaml", before="limit_files") as run:
        check_failed(run, ": cannot be written (File too large)", "_2_", "--resume last")
    check_intact(folder, 2)
    check_goes_on(folder, config, 5)


def test_a_full_disk(tmp_path: Path, mount: Mount) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(GRADIENT.replace("epochs: 3", "epochs: 400"))
    mount_point = mount("-t", "tmpfs", "-o", "size=200k", "none")
    with Started(tmp_path, "train", "-c", "c.yaml", "-S", f"checkpoint-dir={mount_point}") as run:
        check_failed(run, f"{mount_point}/", ": cannot be written (No space left on device)", "--resume last")
    epochs = len(list(mount_point.iterdir()))
    assert epochs > 3
    check_intact(mount_point, epochs)

    (mount_point / "filler").write_bytes(b"")  # filled to the last byte, so that not even a trial can be written
    with open(mount_point / "filler", "ab", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(b"0" * 512)
    with Started(tmp_path, "train", "-c", "c.yaml", "-S", f"checkpoint-dir={mount_point}", "--resume", "last") as run:
        check_failed(run, f"{mount_point}: ", "No space left on device")
    (mount_point / "filler").unlink()
    check_intact(mount_point, epochs)
    last_path = next(mount_point.glob(f"*_{epochs}_*.pkl"))
    for path in mount_point.iterdir():
        if path != last_path:
            path.unlink()
    config.write_text(GRADIENT.replace("epochs: 3", f"epochs: {epochs + 2}"))
    check_goes_on(mount_point, config, epochs + 2)


def test_an_interrupt_on_a_full_disk_says_that_nothing_could_be_saved(tmp_path: Path, mount: Mount) -> None:
    (tmp_path / "c.yaml").write_text(ENDLESS)
    mount_point = mount("-t", "tmpfs", "-o", "size=20k", "none")
    with Started(tmp_path, "train", "-c", "c.yaml", "-S", f"checkpoint-dir={mount_point}") as run:
        run.wait_for("epoch 2/")
        run.send_signal(signal.SIGTERM)
        check_failed(run, "cannot be written (No space left on device)")
    assert list(mount_point.iterdir()) == []


def test_a_read_only_disk(tmp_path: Path, mount: Mount) -> None:
    (tmp_path / "c.yaml").write_text(GRADIENT)
    mount_point = tmp_path / "disk"
    with Started(tmp_path, "train", "-c", "c.yaml", "-q", "-S", f"checkpoint-dir={mount_point}") as run:
        assert run.wait() == 0
    assert mount("--bind", "-o", "ro", str(mount_point)) == mount_point
    with Started(tmp_path, "train", "-c", "c.yaml", "-S", f"checkpoint-dir={mount_point}", "-S", "seed=1") as run:
        check_failed(run, f"{mount_point}: checkpoints cannot be written here (Read-only file system)")
    check_intact(mount_point, 3)
    path = next(mount_point.glob("*_3_*.pkl"))
    with Started(tmp_path, "eval", path, "--json") as run:  # reading needs no writing
        assert run.wait() == 0


def closed(folder: Path, shut: bool) -> None:
    """Take from the folder that files can be made in it, or give it back; a skip where that is not possible."""
    if os.geteuid() != 0:
        folder.chmod(0o500 if shut else 0o700)
        return
    command = ["chattr", "+i" if shut else "-i", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("root may write in a read-only folder, and there is no chattr")
    if done.returncode:
        pytest.skip(f"root may write in a read-only folder, and here chattr says {done.stderr.strip()}")


def test_a_folder_that_turns_read_only_midway(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    reason = os.strerror(errno.EPERM if os.geteuid() == 0 else errno.EACCES)  # immutable for root, mode 0500 for others
    (tmp_path / "c.yaml").write_text(ENDLESS + "save-every: 1\n")
    with Started(tmp_path, "train", "-c", "c.yaml") as run:
        run.wait_for("epoch 4/")
        closed(folder, True)
        try:
            check_failed(run, f": cannot be written ({reason})", "--resume last")
            with Started(tmp_path, "train", "-c", "c.yaml", "--resume", "last") as again:
                check_failed(again, f"checkpoints: checkpoints cannot be written here ({reason})")
        finally:
            closed(folder, False)
    found = [path for path in folder.iterdir() if path.suffix == ".pkl"]
    assert len(found) >= 3 and all(load(path).epoch for path in found)
    with Started(tmp_path, "train", "-c", "c.yaml", "-q", "--resume", "last", "-S", f"epochs={len(found) + 1}") as run:
        assert run.wait() == 0
    assert not [path for path in folder.iterdir() if path.suffix != ".pkl"]  # the lock that could not be removed


@pytest.mark.parametrize("save_every", [0, 1])
def test_a_folder_that_is_deleted_midway(tmp_path: Path, save_every: int) -> None:
    folder = tmp_path / "checkpoints"
    (tmp_path / "c.yaml").write_text(f"{ENDLESS}save-every: {save_every}\n")
    with Started(tmp_path, "train", "-c", "c.yaml") as run:
        run.wait_for("epoch 3/")
        folder.rename(tmp_path / "moved")
        if not save_every:
            run.send_signal(signal.SIGTERM)
        check_failed(run, "checkpoints: was removed during the run", "saved there", "--resume last")
    (saved,) = folder.iterdir()
    assert load(saved).epoch >= 3
    assert all(load(path).epoch for path in (tmp_path / "moved").glob("*.pkl"))


def test_a_folder_that_a_file_has_replaced(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(ENDLESS + "save-every: 1\n")
    with Started(tmp_path, "train", "-c", "c.yaml") as run:
        run.wait_for("epoch 3/")
        (tmp_path / "checkpoints").rename(tmp_path / "moved")
        (tmp_path / "checkpoints").write_text("in the way")
        check_failed(run, ": cannot be written (")
    assert (tmp_path / "checkpoints").read_text() == "in the way"
    assert all(load(path).state["W"].shape == (4, D, 3) for path in (tmp_path / "moved").glob("*.pkl"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_results_and_logs_on_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(GRADIENT)
    with Started(tmp_path, "train", "-c", "c.yaml", err="/dev/full") as run:  # a log is not worth a run
        assert run.wait() == 0 and "mean L2" in run.out.read_text()
    with Started(tmp_path, "train", "-c", "c.yaml", "-q", out="/dev/full") as run:
        assert run.wait() == 1
    said = run.said()
    assert said.count("\n") == 1
    assert "standard output (No space left on device); the run is done and its checkpoint is checkpoints/S28-" in said
    check_intact(tmp_path / "checkpoints", 3)
