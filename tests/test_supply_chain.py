"""What is installed is what was pinned, and every pin is one that pyproject.toml allows. Needs no network."""

import re
import tomllib
from importlib.metadata import distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = "llgae"
TOOLS = {"pip", "setuptools", "wheel"}  # venv's own: they install, and no run imports them


def pins() -> dict[str, Version]:
    """The versions of constraints.txt."""
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        text = line.partition("#")[0].strip()
        if text:
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.+!]*)(?:\s*;.*)?", text)
            assert match, f"constraints.txt: {line!r} is not name==version"
            name = canonicalize_name(match[1])
            assert name not in found, f"constraints.txt: {name} stands twice"
            found[name] = Version(match[2])
    return found


def required() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, the extras' wishes among it."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    found: dict[str, list[Requirement]] = {}
    for line in lines:
        wish = Requirement(line)
        found.setdefault(canonicalize_name(wish.name), []).append(wish)
    return found


def installed() -> dict[str, Version]:
    return {canonicalize_name(each.metadata["Name"]): Version(each.version) for each in distributions()}


def needed() -> set[str]:
    """What the project needs here, over all steps; what else someone has installed is their own affair."""
    ahead, seen = [(OURS, ("dev",))], set()
    by_name = {canonicalize_name(each.metadata["Name"]): each for each in distributions()}
    while ahead:
        name, extras = ahead.pop()
        if (name, extras) in seen or name not in by_name:
            continue
        seen.add((name, extras))
        for line in by_name[name].requires or ():
            wish = Requirement(line)
            if wish.marker is None or any(wish.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                ahead.append((canonicalize_name(wish.name), tuple(sorted(wish.extras))))
    # torch pins the libraries of its GPU builds itself, and the CPU's build has none.
    return {name for name, _ in seen if not name.startswith(("nvidia-", "cuda-", "triton"))} - {OURS} - TOOLS


def test_every_pin_satisfies_every_bound() -> None:
    for name, wishes in required().items():
        if name in pins():
            for wish in wishes:
                assert wish.specifier.contains(pins()[name]), f"{name}: {pins()[name]} is pinned, {wish} is asked for"


def test_everything_that_is_asked_for_is_pinned() -> None:
    assert required().keys() <= pins().keys()


def test_everything_that_is_needed_is_pinned() -> None:
    missing = {f"{name}=={version(name)}" for name in needed() if name not in pins()}
    assert not missing, f"constraints.txt lacks {sorted(missing)}"


@pytest.mark.slow
def test_what_is_installed_is_what_was_pinned() -> None:
    found, pinned = installed(), pins()
    wrong = [
        f"{name} {found[name]} for {pinned[name]}"
        for name in sorted(needed() & pinned.keys())
        if Version(found[name].public) != pinned[name]  # 2.13.0+cpu is a build of 2.13.0
    ]
    if wrong and not (ROOT / ".venv" / "installed").exists():
        pytest.skip(f"not an environment of `make install`: {wrong[0]}")
    assert not wrong


def test_no_pin_is_a_release_that_broke_things() -> None:
    # A bound that excludes a release says why beside it, in pyproject.toml.
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    for line in lines:
        if re.match(r'\s*"[A-Za-z0-9._-]+(\[.*\])?[^"]*(<|!=)', line):
            assert "#" in line, f"pyproject.toml: {line.strip()}: say why"
