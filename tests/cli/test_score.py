"""`llgae score` end to end: with labels and without, its files, and input that it refuses."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, check_refused

from llgae_cli import storage
from llgae_cli.storage.checkpoint import pack

pytestmark = pytest.mark.numeric


@pytest.fixture
def checkpoint(llgae: Command) -> Path:
    said = llgae("train", "--config", "fast.yaml", "-q")
    assert said.code == 0, said.err
    (path,) = Path("checkpoints").glob("*.pkl")
    return path


def test_the_files_hold_what_the_summary_counts(llgae: Command, checkpoint: Path) -> None:
    said = llgae("score", checkpoint, "-o", "scores.csv", "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "nll", "spe", "t2", "k", "above"]
    assert [int(row["row"]) for row in rows] == list(range(document["n"]))
    (limit,) = [one for one in document["quantiles"] if one["quantile"] == 0.99]
    assert sum(int(row["above"]) for row in rows) == limit["above"]
    largest = max(float(row["nll"]) for row in rows)
    assert document["most_novel"][0]["nll"] == pytest.approx(largest)
    assert llgae("score", checkpoint, "-o", "scores.npz").code == 0
    with np.load("scores.npz") as stored:
        np.testing.assert_allclose(stored["nll"], [float(row["nll"]) for row in rows], rtol=1e-6)
    assert "auroc" not in document


def test_a_checkpoint_without_a_density_scores_alike(llgae: Command, checkpoint: Path) -> None:
    before = json.loads(llgae("score", checkpoint, "--json").out)
    content = storage.load(checkpoint)
    assert content.extras.pop("novelty")
    old = Path("old.pkl")
    torch.save(pack(content), old)
    said = llgae("score", old, "--json")
    assert "fitting it to the training split" in said.err
    after = json.loads(said.out)
    assert after["quantiles"] == before["quantiles"] and after["median"] == before["median"]


def test_labels_give_auroc_and_average_precision(llgae: Command, checkpoint: Path) -> None:
    document = json.loads(llgae("score", checkpoint, "--novel", "1,2", "--json").out)
    other = json.loads(llgae("score", checkpoint, "--normal", "0,3", "--json").out)
    assert 0 <= document["auroc"] <= 1 and 0 < document["average_precision"] <= 1
    assert other["auroc"] == document["auroc"] and other["novel"] == document["novel"]
    said = llgae("score", checkpoint, "--novel", "1", "--score", "spe")
    assert "AUROC" in said.out and "score       spe" in said.out


def test_rows_of_a_file_that_do_not_belong_are_above_the_threshold(llgae: Command, checkpoint: Path) -> None:
    D = storage.load(checkpoint).data["D"]
    np.save("far.npy", 1000 * torch.randn(20, D, generator=torch.Generator().manual_seed(0)).numpy())
    document = json.loads(llgae("score", checkpoint, "--task", "npy:far.npy", "--json").out)
    assert document["n"] == 20 and all(one["above"] == 20 for one in document["quantiles"])
    check_refused(llgae("score", checkpoint, "--task", "npy:far.npy", "--novel", "1"), "--novel", "no labels")


@pytest.mark.parametrize(
    "options, words",
    [
        (("-o", "scores.txt"), ("scores.txt", "a .csv file, an .npz file")),
        (("--score", "nil"), ("nil", "nll")),
        (("--quantile", "0.98"), ("0.98", "0.999")),
        (("--novel", "one"), ("--novel one", "3,5")),
        (("--novel", "7"), ("--novel 7", "0, 1, 2, 3")),
        (("--novel", "0,1,2,3"), ("every row",)),
        (("--novel", "1", "--normal", "2"), ("not both",)),
        (("--task", "npy:narrow.npy"), ("samples of 3 values",)),
    ],
)
def test_bad_input_is_one_line(
    llgae: Command, checkpoint: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    np.save("narrow.npy", np.zeros((5, 3)))
    check_refused(llgae("score", checkpoint, *options), *words)
