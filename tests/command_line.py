"""The command line in this process: a fixture, what a command returned, and two small configs."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

FAST = "task: subspaces\nK: 4\nembed-dim: 3\nrestarts: 1\nmoves: 0\nepochs: 3\nfigures: false\n"
BY_GRADIENT = FAST.replace("restarts: 1\nmoves: 0\n", "trainer: gradient\n")


@dataclass
class Said:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def llgae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command line, in this process and in a folder of its own that holds fast.yaml and gradient.yaml."""
    from llgae_cli.cli.app import main  # here: tests/reliability_helper.py forks before this is imported

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.yaml").write_text(FAST)
    (tmp_path / "gradient.yaml").write_text(BY_GRADIENT)

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["llgae", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    yield run
    for signum, handler in before.items():
        signal.signal(signum, handler)


def check_refused(said: Said | subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2, nothing on stdout, and one line on stderr that has all the words."""
    code, out, err = (
        (said.code, said.out, said.err) if isinstance(said, Said) else (said.returncode, said.stdout, said.stderr)
    )
    assert code == 2, err
    assert out == "" and err.startswith("llgae: ") and err.count("\n") == 1, err
    assert "Traceback" not in err and "Error(" not in err
    for word in words:
        assert word in err, (word, err)
