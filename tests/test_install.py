"""The wheel, installed away from any checkout, has all that the commands need."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, cwd: Path) -> str:
    """The standard output of a command that does not see the checkout."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "llgae_cli").rglob("__init__.py")}
    configs = {Path("llgae_cli") / path.parent.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert sorted(listed) == sorted(".".join(folder.parts) for folder in folders | configs)


@pytest.mark.slow
def test_the_wheel_trains_evaluates_reports_and_compresses(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    source = tmp_path / "source"  # a copy: building leaves files behind
    for name in ("llgae_cli", "configs", "pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        run("cp", "-r", ROOT / name, source, cwd=tmp_path)
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # Our dependencies are those of this environment. Its own .pth files, and so its llgae, are not read.
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")

    place = tmp_path / "elsewhere"
    place.mkdir()
    llgae = tmp_path / "venv" / "bin" / "llgae"
    where = run(python, "-c", "import llgae_cli; print(llgae_cli.__file__)", cwd=place).strip()
    assert Path(where).is_relative_to(site)
    run(llgae, "train", "-c", "smoke", "-S", "restarts=1", "-S", "moves=0", "-S", "epochs=3", cwd=place)
    (checkpoint,) = place.rglob("*.pkl")
    assert "mean L2" in run(llgae, "eval", checkpoint, cwd=place)
    run(llgae, "report", checkpoint, "-o", "report.html", cwd=place)
    assert (place / "report.html").stat().st_size > 10_000
    run(llgae, "compress", checkpoint, "-o", "test.llgae", "--bits", "20", cwd=place)
    assert "rows" in run(llgae, "info", "test.llgae", cwd=place)
