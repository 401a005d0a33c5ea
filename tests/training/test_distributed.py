"""Several processes give the result of one; when one dies, all end with a message."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torchrun_helper import child_of_rank, torchrun

from llgae_cli import experiment
from llgae_cli.config import read_config
from llgae_cli.storage import load

pytestmark = [pytest.mark.numeric, pytest.mark.slow]
CONFIG = "task: subspaces\nK: 9\nembed-dim: 2\nepochs: 3\nfigures: false\n"
CONFIGS = {
    "closed-form": f"{CONFIG}restarts: 1\nmoves: 2\ncandidates: 4\ntol: 0\n",
    "rate": f"{CONFIG}bits: 30\nshrinkage: 20\nleave-one-out: true\ntol: 0\n",
    "gradient": f"{CONFIG}trainer: gradient\nbatch-size: 70\n",
}
TRAINERS = tuple(CONFIGS)

# All trainers in one launch, in a group of the caller's own.
WORKER = """
import sys
from pathlib import Path
import torch
from llgae_cli import experiment
from llgae_cli.cli.console import set_up_logging
from llgae_cli.config import read_config
from llgae_cli import distributed
set_up_logging(False)
assert distributed.join(torch.device("cpu")) and not distributed.join(torch.device("cpu"))
for trainer in ("closed-form", "rate", "gradient"):
    config = read_config([Path(f"{trainer}.yaml")], [f"checkpoint-dir={trainer}"])
    outcome = experiment.train(config)
    sys.stdout.write(f"{trainer} {outcome.checkpoint} {outcome.mean_l2}\\n")  # at once: lines must not mix
    sys.stdout.flush()
    assert distributed.world_size() > 1
distributed.leave()
"""


def write_configs(folder: Path) -> None:
    """A config file for each trainer, named after it."""
    for trainer, text in CONFIGS.items():
        (folder / f"{trainer}.yaml").write_text(text)


@pytest.fixture(scope="module")
def single_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, experiment.Outcome]:
    """The result of one process, with each trainer."""
    folder = tmp_path_factory.mktemp("single")
    write_configs(folder)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: with more threads, sums round differently
    try:
        return {
            trainer: experiment.train(read_config([folder / f"{trainer}.yaml"], [f"checkpoint-dir={folder / trainer}"]))
            for trainer in TRAINERS
        }
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_with_uneven_shares_equal_one(
    tmp_path: Path, processes: int, single_process: dict[str, experiment.Outcome]
) -> None:
    write_configs(tmp_path)
    (tmp_path / "worker.py").write_text(WORKER)
    with torchrun(processes, tmp_path, "worker.py", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    for trainer in TRAINERS:
        lines = [line.split() for line in out.splitlines() if line.startswith(trainer)]
        assert len(lines) == processes and sum(line[1] != "None" for line in lines) == 1  # only rank 0 writes
        (path,) = (tmp_path / trainer).iterdir()
        results, one = load(path), single_process[trainer]
        assert one.checkpoint is not None
        assert results.mean_l2 == pytest.approx(one.mean_l2, rel=1e-5)
        assert results.train_mean_l2 == pytest.approx(one.train_mean_l2, rel=1e-5)
        assert {float(line[2]) for line in lines} == {results.mean_l2}  # every process holds the same model
        history, expected = results.history, load(one.checkpoint).history
        assert [row["train_mean_l2"] for row in history] == pytest.approx(
            [row["train_mean_l2"] for row in expected], rel=1e-5
        )
    assert err.count("4000 training samples") == len(TRAINERS)  # only rank 0 writes messages


def test_a_process_that_dies_ends_all_with_a_message(tmp_path: Path) -> None:
    write_configs(tmp_path)
    arguments = (
        "-m",
        "llgae_cli",
        "train",
        "-c",
        "gradient.yaml",
        "-S",
        "epochs=1000000",
        "--json",
    )
    with torchrun(2, tmp_path, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stderr is not None and run.stdout is not None
        try:
            for line in run.stderr:
                if line.startswith("epoch 2/"):
                    break
            second = child_of_rank(run.pid, 1)
            began = time.monotonic()
            os.kill(second, signal.SIGKILL)
            err, out = run.stderr.read(), run.stdout.read()
            code = run.wait(60)
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
    assert code != 0 and out == ""
    assert time.monotonic() - began < 45
    ours = [line for line in err.splitlines() if line.startswith("llgae: ")]
    assert len(ours) == 1 and ("another process died" in ours[0] or "interrupted" in ours[0])
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert f"; saved checkpoints/{saved.name}" in ours[0] and load(saved).epoch >= 2  # nothing is lost with it
    assert "Signal 9 (SIGKILL)" in err and "1/1000000" not in err
