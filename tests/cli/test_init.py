"""`llgae init`, and the keys for own data on the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from command_line import check_refused

from llgae_cli import proposal

pytestmark = [pytest.mark.numeric, pytest.mark.slow]


@pytest.fixture
def planes() -> np.ndarray:
    """Points near two planes in 8 dimensions, and a constant column."""
    rng = np.random.default_rng(0)
    k = np.arange(1200) % 2
    W, mu = rng.normal(size=(2, 2, 8)), 6 * rng.normal(size=(2, 8))
    x = mu[k] + np.einsum("ne,ned->nd", 3 * rng.normal(size=(1200, 2)), W[k]) + 0.05 * rng.normal(size=(1200, 8))
    return np.concatenate([x * 10.0 ** np.arange(-3, 5), np.full((1200, 1), 7.0)], 1)


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposal, "K_TRIED", (1, 2, 4))
    monkeypatch.setattr(proposal, "E_TRIED", (1, 2, 3))
    monkeypatch.setattr(proposal, "SECONDS", 1e9)


def test_a_config_is_proposed_and_trains(llgae: Any, planes: np.ndarray, small_grid: None) -> None:
    names = [f"v{j}" for j in range(8)] + ["flat"]
    pa.csv.write_csv(pa.table({name: planes[:, j] for j, name in enumerate(names)}), "x.csv")
    said = llgae("init", "x.csv", "-o", "-")
    assert said.code == 0 and said.err == "", said.err
    config = yaml.safe_load(said.out)
    assert (config["K"], config["embed-dim"], config["centring"]) == (2, 2, "none")
    assert "# Constant: flat" in said.out
    said = llgae("init", "x.csv", "--columns", "-flat", "-o", "mine.yaml")
    assert said.code == 0 and "K = 2, embed-dim = 2" in said.out and "train --config mine.yaml" in said.out
    assert llgae("train", "-c", "mine.yaml", "-S", "figures=false").code == 0
    check_refused(llgae("init", "x.csv", "-o", "mine.yaml"), "mine.yaml", "--force")
    assert llgae("init", "x.csv", "-o", "mine.yaml", "--force").code == 0
    check_refused(llgae("init", "y.csv", "-o", "-"), "y.csv", "did you mean 'x.csv'")
    pa.csv.write_csv(pa.table({"a": [1.0, 2.0], "place": ["north", "south"]}), "text.csv")
    check_refused(llgae("init", "text.csv", "-o", "-"), "row 0, column 'place'", "columns: '-place'", "labels: 'place'")
    pa.csv.write_csv(pa.table({"a": [1.0] * 20, "b": [2.0] * 20}), "flat.csv")
    check_refused(llgae("init", "flat.csv", "-o", "-"), "every column is constant")


def test_the_columns_of_a_checkpoint_are_used_by_name(llgae: Any, planes: np.ndarray) -> None:
    table = pa.table({f"v{j}": planes[:, j] for j in range(5)})
    pa.csv.write_csv(table, "x.csv")
    pa.csv.write_csv(table.select(["v3", "v1", "v4", "v0", "v2"]), "turned.csv")
    pa.csv.write_csv(table.select(["v0", "v1"]), "short.csv")
    keys = ["task=x.csv", "columns=v2,v0,v1", "K=2", "embed-dim=1", "centring=none"]
    assert llgae("train", "-c", "fast.yaml", *(part for key in keys for part in ("-S", key))).code == 0
    path = next(Path("checkpoints").rglob("*.pkl"))
    own, other = llgae("eval", path, "--json"), llgae("eval", path, "--task", "turned.csv", "--json")
    assert own.code == other.code == 0, other.err
    mean_l2 = [yaml.safe_load(said.out)["mean_l2"] for said in (own, other)]
    assert mean_l2[0] == mean_l2[1]
    check_refused(llgae("eval", path, "--task", "short.csv"), "no column 'v2'")


def test_data_takes_the_options(llgae: Any, planes: np.ndarray) -> None:
    pa.csv.write_csv(pa.table({"a": planes[:, 0], "b": planes[:, 1], "kind": ["u", "v"] * 600}), "x.csv")
    said = llgae("data", "x.csv", "--labels", "kind", "--columns", "b", "--test", "0.5")
    assert said.code == 0 and said.out.splitlines()[4] == "columns      b"
    said = llgae("data", "x.csv", "--labels", "kind", "--test", "0.5", "--json")
    shown = yaml.safe_load(said.out)
    assert shown["classes"] == ["u", "v"] and shown["test"] == 600 and shown["columns"] == ["a", "b"]
    check_refused(llgae("data", "x.csv", "--missing", "skip"), "error or drop")
    check_refused(llgae("train", "-c", "fast.yaml", "-S", "columns=a"), "columns", "no effect")
