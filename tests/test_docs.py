"""What README, CONTRIBUTING, docs and config headers quote exists: paths, commands, options, keys, targets, modules."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import typer.main
import yaml

import llgae_cli
from llgae_cli import __version__
from llgae_cli.cli.app import app
from llgae_cli.config import KEYS, read_config
from llgae_cli.factory import MODELS
from llgae_cli.sweep import read_plan

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llgae_cli"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
COMMANDS: dict[str, click.Command] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
TORCHRUN = {"--nproc_per_node", "--node_rank", "--rdzv_endpoint"}
NOT_OURS = {
    *TORCHRUN,
    "--constraint",
    "--nodes",
    "--ntasks-per-node",
    "--cpus-per-task",
}  # pip, SLURM
# Names that stand for many, and files and folders that a run makes.
MADE = re.compile(r"NAME|^(build|checkpoints|sweeps|data)/")

named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(path: Path) -> str:
    """A page; of a config its header of comments without the line for editors. Its lines may break within a command."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    text = re.sub(r"\A# yaml-language-server: .*\n", "", text)
    return "\n".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))


def code_in(path: Path) -> Iterator[str]:
    """Spans in backquotes and lines of code blocks, without the comment at the end of a line."""
    text = re.sub(r"^```text\n.*?^```$", "", text_of(path), flags=re.M | re.S)  # the tree, which has its own test
    text = re.sub(r"^```\w*\n(.*?)^```$", lambda block: indented(block[1]), text, flags=re.M | re.S)
    text = text.replace("\\\n", " ")
    for line in re.findall(r"^    (.+)$", text, re.M):
        yield re.sub(r"\s+#\s.*", "", line)
    for span in re.findall(r"`([^`]+)`", re.sub(r"^    .+$", "", text, flags=re.M)):
        yield re.sub(r"\s+", " ", span)
    if path.suffix == ".yaml":
        yield text_of(path).splitlines()[0]


def indented(text: str) -> str:
    return re.sub(r"^", "    ", text, flags=re.M)


def commands_in(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The name and the arguments of each `llgae` command that the file quotes."""
    for code in code_in(path):
        for command in re.findall(r"(?<![\w/.])(?:llgae|-m llgae_cli) ([a-z].*)", code):
            name, *arguments = shlex.split(command.replace("[", "").replace("]", ""))
            yield name, arguments


def quoted_paths(path: Path) -> set[str]:
    """What reads as a path of the repository: in code, and where links of the page lead."""
    words = [word.strip(",;:()'\"") for code in code_in(path) for word in code.split()]
    paths = {word for word in words if re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", word) and is_path(word)}
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text_of(path))
    return paths | {str((path.parent / link).resolve().relative_to(ROOT)) for link in links}


def is_path(word: str) -> bool:
    """A file by its suffix, or something in a folder of the repository or of the package."""
    first, slash, _ = word.partition("/")
    known = any((place / first).is_dir() for place in (ROOT, PACKAGE))
    return word.endswith((".md", ".cff", ".txt", ".toml", ".py", ".yaml")) or (bool(slash) and known)


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: page.name)
def test_quoted_paths_exist(page: Path) -> None:
    places = (ROOT, page.parent, PACKAGE, ROOT / "configs" / "sweeps")  # a config's header names its neighbours
    wrong = [quoted for quoted in quoted_paths(page) if not any((place / quoted).exists() for place in places)]
    assert [quoted for quoted in wrong if not MADE.search(quoted)] == []


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: page.name)
def test_quoted_commands_and_options_exist(page: Path) -> None:
    for name, arguments in commands_in(page):
        assert name in COMMANDS, f"{page.name}: llgae {name}"
        options = {option for each in COMMANDS[name].params for option in each.opts} | {"--help", "-h"}
        for option in (argument for argument in arguments if re.match(r"--?[a-zA-Z]", argument)):
            assert option in options, f"{page.name}: llgae {name} {option}"


def test_the_readme_shows_every_command() -> None:
    shown = {name for name, _ in commands_in(ROOT / "README.md")}
    assert shown == {name for name, command in COMMANDS.items() if not command.hidden}


@named
def test_options_in_the_text_belong_to_some_command(page: Path) -> None:
    known = {option for command in COMMANDS.values() for each in command.params for option in each.opts}
    for code in code_in(page):
        if not re.search(r"\b(pip|python3?|torchrun|git|docker)\b", code):
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code):
                assert (
                    option in known | {"--version", "--help", "--install-completion", "--show-completion"} | NOT_OURS
                ), f"{page.name}: {option}"


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda page: page.name)
def test_quoted_commands_have_keys_and_configs_that_are_accepted(page: Path) -> None:
    for name, arguments in commands_in(page):
        following = list(pairwise(arguments))
        configs = [ROOT / value for option, value in following if option in ("-c", "--config") and "/" in value]
        overrides = [value for option, value in following if option in ("-S", "--set")]
        for override in overrides:
            assert override.partition("=")[0] in [*KEYS, "key"], f"{page.name}: -S {override}"
        if configs and name == "sweep":
            plan = read_plan(configs[0], overrides)
            assert plan.cells or plan.search
        elif configs:
            concrete = [override for override in overrides if not override.endswith(("...", "key=value"))]
            assert read_config(configs, concrete)


@named
def test_quoted_keys_and_values_are_the_configs(page: Path) -> None:
    """`key: value` in backquotes: a key of configs or sweep files, and of `model:` a model."""
    sections = {"base", "grid", "zip", "repeat", "halving", "keep", "rungs"}
    for span in re.findall(r"`([a-zA-Z][\w-]*): [^`]*`", text_of(page)):
        assert span in {*KEYS, *sections}, f"{page.name}: {span}"
    assert set(re.findall(r"`model: ([\w-]+)`", text_of(page))) <= MODELS.keys()


@named
def test_quoted_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    for code in code_in(page):
        for command in re.findall(r"(?:^|\s)make ([a-z][\w= .]*|PYTHON=.*)", code):
            words = [word for word in command.split() if "=" not in word]
            assert set(words) <= targets, f"{page.name}: make {command}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_shipped_config_opens_with_its_command_and_states_its_result(path: Path) -> None:
    command = "sweep" if path.parent.name == "sweeps" else "train"
    header = text_of(path).splitlines()
    assert header[0].startswith(f"llgae {command} --config {path.relative_to(ROOT).as_posix()}")
    assert re.search(r"Expect .*\d", " ".join(header[1:]))


@named
@pytest.mark.numeric
def test_python_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert examples or page.name not in ("README.md", "models.md", "api.md")
    for example in examples:
        names: dict[str, object] = {}
        exec(compile(example, page.name, "exec"), names)
        assert names["x_hat"].shape == (1797, 64)  # type: ignore[attr-defined]
        assert "codes" not in names or np.column_stack(as_columns(names["codes"])).shape == (1797, 6)


def as_columns(codes: Any) -> tuple[Any, ...]:
    """k and b of the API's codes, or the estimator's array."""
    return (codes.k, codes.b) if isinstance(codes, llgae_cli.Codes) else (codes,)


def test_the_api_page_names_what_is_public() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    assert [name for name in llgae_cli.__all__ if not re.search(rf"`{name}\b", text)] == []


def tree() -> set[str]:
    """The files and folders in the README's tree, by path."""
    block = re.search(r"^## The tree\n.*?^```text\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert block
    folders: list[str] = []
    paths = set()
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = re.match(r"(\S+(?: \S+\.\w+)*)", line.strip())[1].split(" ")  # type: ignore[index]
        folders[depth:] = [names[0]] if names[0].endswith("/") else []
        paths |= {"".join(folders[:depth]) + name for name in names}
    return paths


def test_the_readmes_tree_names_every_file_of_the_package_and_no_other() -> None:
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    inside = {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}
    folders = {f"{path.parent.relative_to(ROOT).as_posix()}/" for path in files}
    named = tree()
    assert {path for path in named if path.startswith("llgae_cli/")} == inside | folders
    assert all((ROOT / path).exists() for path in named)


def test_citation_and_changelog_have_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert re.search(rf"^## (Unreleased|{re.escape(__version__)}\b)", (ROOT / "CHANGELOG.md").read_text(), re.M)
