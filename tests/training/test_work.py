"""Trainers count their work: at the end as much is done as is expected, and the words say where they are."""

import pytest

from llgae_cli import experiment
from llgae_cli.config import parse_config
from llgae_cli.progress import Progress

FAST = {"task": "subspaces", "K": 4, "embed-dim": 3, "epochs": 3, "figures": False}


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"restarts": 2, "moves": 3, "threads": 1},  # with two, the second restart may be past its annealing
            {"principal coordinates", "restart 1 of 2, annealing", "restart 2 of 2, annealing", "pass 1", "codec"},
        ),
        ({"trainer": "gradient"}, {"epoch 1, batch 1 of 15", "epoch 3, batch 15 of 15", "training samples"}),
        ({"bits": 12.0}, {"k-means", "pass 1", "codec"}),
        ({"candidates": 2, "restarts": 1, "moves": 0, "tol": 0.0}, {"restart, annealing", "pass 1"}),
        (
            {"model": "residual", "restarts": 1, "moves": 0, "epochs": 9},
            {"level 1 of 2, restart, annealing", "level 2 of 2, pass 1", "update 1"},
        ),
        ({"model": "residual", "restarts": 1, "moves": 0, "epochs": 9, "tol": 0.0}, {"level 1 of 2, pass 1"}),
        ({"model": "gae", "decoder": "mlp", "width": 8, "trainer": "gradient"}, {"epoch 2, batch 3 of 15"}),
        (
            {"trainer": "gradient", "start": "closed-form", "restarts": 1, "moves": 0},
            {"initialisation, restart, annealing", "initialisation, pass 1", "epoch 3, batch 15 of 15"},
        ),
    ],
    ids=lambda case: " ".join(map(str, case.values())) if isinstance(case, dict) else "",
)
def test_all_expected_work_is_done_in_the_end(
    tmp_path, monkeypatch: pytest.MonkeyPatch, options: dict, words: set[str]
) -> None:
    monkeypatch.setattr("llgae_cli.progress.INTERVAL", 0.0)
    seen: list[Progress] = []
    config = parse_config({**FAST, **options, "checkpoint-dir": str(tmp_path)})
    experiment.train(config, on_progress=seen.append)
    assert words <= {progress.what for progress in seen}
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    *_, last, end = seen
    assert (
        end.done == end.total
        and last.done >= 0.8 * last.total
        and all(0 < progress.done <= progress.total for progress in seen)
    )
    assert all(progress.seconds_left is not None and progress.seconds_left >= 0 for progress in seen)


def test_who_listens_does_not_change_the_result(tmp_path) -> None:
    config = parse_config({**FAST, "restarts": 2, "checkpoint-dir": str(tmp_path)})
    alone, watched = experiment.train(config), experiment.train(config, on_progress=lambda progress: None)
    assert alone.mean_l2 == watched.mean_l2 and alone.checkpoint == watched.checkpoint
