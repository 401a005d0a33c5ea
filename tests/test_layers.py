"""Imports run downward only; below the command line nothing prints, exits or knows of it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "llgae_cli"

# From the top: a part may import from its own row and from those below, and no two parts import each other.
ROWS = [
    {"cli"},
    {"report", "api", "batch"},
    {"sweep", "bench"},
    {"figures"},
    {"experiment", "proposal"},
    {"evaluation", "sklearn"},
    {"codec"},
    {"factory", "run"},
    {"training", "storage"},
    {"models"},
    {"inference", "tasks", "config"},
    {"distributed", "interrupts", "threads", "formatting", "regular_files", "progress", "scaling"},
    {"errors"},
]
LEVEL = {part: level for level, row in enumerate(ROWS) for part in row}
NEVER_CONFIG = ("training", "models", "inference", "tasks", "sklearn", "figures")  # these take plain arguments


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem[:2] != "__")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Every module that the file names in an import, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imported(path))
    return {parts[1] for parts in names if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1][:2] != "__"}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_downward_only(path: Path) -> None:
    part = part_of(path)
    assert part in LEVEL, f"give {part} a row in ROWS and in the design"
    for other in parts_imported(path) - {part}:
        assert LEVEL[other] >= LEVEL[part], f"{path} imports {other}, which stands above it"
    if part in NEVER_CONFIG:
        assert "config" not in parts_imported(path)


def test_no_two_parts_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for path in sources():
        graph.setdefault(part_of(path), set()).update(parts_imported(path) - {part_of(path)})
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert not graph["errors"] and order.index("cli") > order.index("experiment")


@pytest.mark.parametrize("name", ["errors.py", "regular_files.py", "config/schema.py", "config/yaml_files.py"])
def test_a_leaf_imports_nothing_of_ours_but_errors(name: str) -> None:
    own = {"config", "regular_files"} if name.startswith("config") else set()
    assert parts_imported(PACKAGE / name) <= {"errors", *own}


def test_figures_take_arrays_and_the_album_alone_an_evaluated_checkpoint() -> None:
    for path in (PACKAGE / "figures").rglob("*.py"):
        if path.stem not in ("__init__", "album"):
            outside = {name for name in imported(path) if name.startswith("llgae_cli.") and ".figures" not in name}
            modules = {".".join(name.split(".")[1:3]) for name in outside if len(name.split(".")) > 2}
            assert modules <= {"evaluation.rate", "storage.atomic", "formatting.five_digits", "formatting.format_value"}


def test_no_module_is_longer_than_400_lines() -> None:
    long = {path.name: n for path in sources() if (n := len(path.read_text().splitlines())) > 400}
    assert not long, long


@pytest.mark.parametrize(
    "path", [path for path in sources() if part_of(path) != "cli"], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_only_the_command_line_prints_or_exits(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(path)}
    assert not roots & {"typer", "click", "rich", "argparse"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "sys.exit", "exit", "quit", "os._exit", "sys.stdout.write"), path
        if isinstance(node, ast.Raise):
            assert node.exc is None or "SystemExit" not in ast.unparse(node.exc), path


def modules_after(code: str, *arguments: str) -> set[str]:
    """The modules that a fresh interpreter has loaded once it has run the code."""
    told = f"import atexit, sys\natexit.register(lambda: sys.stderr.write('\\n' + ' '.join(sys.modules)))\n{code}"
    done = subprocess.run([sys.executable, "-c", told, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_torch_is_imported_late() -> None:
    loaded = modules_after(
        "import llgae_cli.config, llgae_cli.storage.names, llgae_cli.storage.run_table\n"
        "from llgae_cli.cli.app import main\nmain()",
        "--help",
    )
    assert {"llgae_cli.config", "llgae_cli.cli.train"} <= loaded
    assert not loaded & {"torch", "torchvision", "numpy", "matplotlib", "ray", "sklearn"}


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = modules_after("import llgae_cli as llgae\nassert 'load' in dir(llgae)")
    assert "llgae_cli" in loaded
    assert not loaded & {"torch", "torchvision", "numpy", "matplotlib", "pydantic", "yaml", "typer", "rich"}
    assert "torch" not in modules_after("import llgae_cli as llgae\nllgae.InputError, llgae.Config, llgae.read_config")


def test_listing_runs_does_not_import_torch(tmp_path: Path) -> None:
    assert "torch" not in modules_after("from llgae_cli.cli.app import main\nmain()", "runs", str(tmp_path))
