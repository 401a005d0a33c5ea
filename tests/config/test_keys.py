"""Which keys have an effect with which model and trainer: the table, the proof by training, and the errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from llgae_cli.config import KEYS, parse_config, read_config
from llgae_cli.errors import InputError
from llgae_cli.evaluation import metrics
from llgae_cli.factory import build_model, build_trainer, set_up_torch
from llgae_cli.tasks import load_task

NEUTRAL_KEYS = {
    "epochs",
    "data-dir",
    "checkpoint-dir",
    "save-every",
    "eval-every",
    "device",
    "threads",
    "figures",
    "log",
    "shards",
}
SOURCE_KEYS = {"K", "embed-dim", "beta", "n-step", "lr", "task"}
DATA_KEYS = {"centring", "scaling", "columns", "labels", "test", "missing"}
ALWAYS = {
    "task",
    "model",
    "K",
    "embed-dim",
    "trainer",
    "epochs",
    "validation",
    "rows",
    "seed",
    *DATA_KEYS,
    *NEUTRAL_KEYS,
}
GRADIENT = ALWAYS | {"optimizer", "lr", "batch-size", "schedule", "average", "flip"}
LATENT = {"prior", "inference", "beta"}
STARTS = {"tol", "restarts", "moves", "candidates", "shrinkage"}
RATE = {"bits", "step"}
NETWORK = {"decoder", "width", "channels", "precision"}
CLIMBED = {"prior", "beta", "n-step", "latent-start", "ascent"}
TRAINED = CLIMBED | {"ascent-epochs", "ascent-steps"}  # training takes the ascent

# Name: the choices that decide (model, trainer and others), and all keys that have an effect then.
TABLE: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llgae": ({}, ALWAYS | LATENT | STARTS | RATE),
    "llgae for a rate": ({"bits": 9.0, "K": 3}, ALWAYS | LATENT | RATE | {"tol", "shrinkage", "leave-one-out"}),
    "llgae for a step": ({"step": 20.0}, ALWAYS | LATENT | RATE | {"tol", "shrinkage", "leave-one-out"}),
    "llgae gradient": ({"trainer": "gradient"}, GRADIENT | LATENT | {"n-step", "start"}),
    "llgae gradient adamw": (
        {"trainer": "gradient", "optimizer": "adamw"},
        GRADIENT | LATENT | {"n-step", "start"},
    ),
    "llgae gradient exact": (
        {"trainer": "gradient", "inference": "least-squares"},
        GRADIENT | {"prior", "inference", "start"},
    ),
    "llgae gradient from closed form": (
        {"trainer": "gradient", "start": "closed-form"},
        GRADIENT | LATENT | STARTS | {"n-step", "start"},
    ),
    "llgae gradient from closed form exact": (
        {"trainer": "gradient", "start": "closed-form", "inference": "least-squares"},
        GRADIENT | LATENT | STARTS | {"start"},
    ),
    "pca": ({"model": "pca"}, ALWAYS | LATENT | RATE | {"tol"}),
    "pca for a rate": ({"model": "pca", "bits": 9.0}, ALWAYS | LATENT | RATE | {"tol"}),
    "pca gradient": ({"model": "pca", "trainer": "gradient"}, GRADIENT | {"prior", "inference", "start"}),
    "kmeans": ({"model": "kmeans"}, ALWAYS | STARTS - {"shrinkage"} | RATE),
    "kmeans for a step": ({"model": "kmeans", "step": 20.0}, ALWAYS | RATE | {"tol", "leave-one-out"}),
    "kmeans gradient": ({"model": "kmeans", "trainer": "gradient"}, GRADIENT | {"start"}),
    "residual": ({"model": "residual"}, ALWAYS | LATENT | STARTS - {"candidates"} | {"levels", "sweeps"}),
    "residual gradient": (
        {"model": "residual", "trainer": "gradient"},
        GRADIENT | LATENT | {"n-step", "start", "levels", "sweeps"},
    ),
    "residual gradient from closed form": (
        {"model": "residual", "trainer": "gradient", "start": "closed-form"},
        GRADIENT | LATENT | STARTS | {"n-step", "start", "levels", "sweeps"},
    ),
    "shift": ({"model": "shift"}, ALWAYS | LATENT | STARTS - {"candidates"} | {"window"}),
    "shift gradient": (
        {"model": "shift", "trainer": "gradient"},
        GRADIENT | LATENT | {"n-step", "start", "window"},
    ),
    "soft-llgae": (
        {"model": "soft-llgae"},
        GRADIENT | LATENT | STARTS | {"n-step", "start", "tau", "gates"},
    ),
    "soft-llgae random exact": (
        {"model": "soft-llgae", "start": "random", "inference": "least-squares"},
        GRADIENT | {"prior", "inference", "start", "tau", "gates"},
    ),
    "soft-llgae embedding": (
        {"model": "soft-llgae", "start": "random", "gates": "embedding", "inference": "least-squares"},
        GRADIENT | {"prior", "inference", "n-step", "start", "gates", "gate-dim"},
    ),
    "gae": ({"model": "gae"}, GRADIENT | CLIMBED | NETWORK),
    "gae adamw": ({"model": "gae", "optimizer": "adamw"}, GRADIENT | CLIMBED | NETWORK | {"weight-decay"}),
    "gae muon": ({"model": "gae", "optimizer": "muon"}, GRADIENT | CLIMBED | NETWORK | {"weight-decay"}),
    "gae mlp": ({"model": "gae", "decoder": "mlp"}, GRADIENT | CLIMBED | NETWORK - {"channels"}),
    "gae linear": ({"model": "gae", "decoder": "linear"}, GRADIENT | CLIMBED | {"decoder", "precision", "start"}),
    "gae linear from closed form": (
        {"model": "gae", "decoder": "linear", "start": "closed-form"},
        GRADIENT | CLIMBED | STARTS | {"decoder", "precision", "start"},
    ),
    "gae linear learnt": (
        {"model": "gae", "decoder": "linear", "latent-start": "learnt", "optimizer": "adamw"},
        GRADIENT | TRAINED | STARTS | {"decoder", "width", "precision", "weight-decay", "ascent-method", "tries"},
    ),
    "gae learnt": (
        {"model": "gae", "latent-start": "learnt"},
        GRADIENT | TRAINED | NETWORK | STARTS | {"ascent-method", "tries"},
    ),
    "gae of one component for a rate": (
        {"model": "gae", "latent-start": "learnt", "ascent": "later", "decoder": "mlp", "bits": 9.0, "K": 1},
        GRADIENT | CLIMBED | NETWORK - {"channels"} | STARTS | {"ascent-method", "tries", "bits"},
    ),
    "deep-llgae": (
        {"model": "deep-llgae"},
        GRADIENT | CLIMBED | NETWORK | STARTS | {"weight-decay", "ascent-method", "tries", "bits"},
    ),
    "deep-llgae for a rate": (
        {"model": "deep-llgae", "bits": 9.0, "K": 3},
        GRADIENT | CLIMBED | NETWORK | STARTS | {"weight-decay", "ascent-method", "tries", "bits"},
    ),
    "deep-llgae zero": (
        {"model": "deep-llgae", "latent-start": "zero"},
        GRADIENT | CLIMBED | NETWORK | {"weight-decay", "start"},
    ),
    "deep-llgae linear": (
        {"model": "deep-llgae", "decoder": "linear"},
        GRADIENT | CLIMBED | STARTS | {"decoder", "width", "precision", "weight-decay", "ascent-method", "tries"},
    ),
    "deep-llgae bfgs": (
        {"model": "deep-llgae", "ascent-method": "bfgs"},
        GRADIENT
        | (CLIMBED - {"beta"}) | NETWORK | STARTS
        | {"weight-decay", "ascent-method", "ascent-tol", "tries", "bits"},
    ),
    "deep-llgae bfgs, steps in training": (
        {"model": "deep-llgae", "ascent-method": "bfgs", "ascent": "given"},
        GRADIENT | TRAINED | NETWORK | STARTS | {"weight-decay", "ascent-method", "ascent-tol", "tries"},
    ),
    "autoencoder": ({"model": "autoencoder"}, GRADIENT | NETWORK),
    "autoencoder mlp": ({"model": "autoencoder", "decoder": "mlp"}, GRADIENT | NETWORK - {"channels"}),
    "denoising-autoencoder": ({"model": "denoising-autoencoder"}, GRADIENT | NETWORK | {"noise"}),
}  # fmt: skip
SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
assert SHIPPED
CASES = [pytest.param(choices, having, id=name) for name, (choices, having) in TABLE.items()]

# Another value than any that the cases above have.
OTHER: dict[str, Any] = {
    "prior": "gaussian", "inference": "loop", "beta": 0.003, "n-step": 3, "tol": 0.5, "restarts": 3, "moves": 3,
    "candidates": "off", "shrinkage": 9.0, "optimizer": "sgd", "lr": 3e-4, "batch-size": 11, "start": "closed-form",
    "schedule": "one-cycle", "weight-decay": 0.5, "average": 0.5, "precision": "bfloat16", "flip": True,
    "decoder": "mlp", "width": 9, "channels": 3, "latent-start": "linear", "ascent": "given", "tau": 1e-2,
    "ascent-epochs": 1, "ascent-steps": 2, "ascent-method": "bfgs", "ascent-tol": 0.25, "tries": 2,
    "gates": "embedding", "gate-dim": 3, "levels": 3, "sweeps": 2, "window": 2, "noise": 9.0, "bits": 50.0,
    "step": 30.0, "leave-one-out": True,
}  # fmt: skip
SIZES = {
    "kmeans": {"embed-dim": 0}, "pca": {"embed-dim": 2}, "autoencoder": {"embed-dim": 2},
    "denoising-autoencoder": {"embed-dim": 2},
}  # fmt: skip


def choices_text(choices: dict[str, Any]) -> list[str]:
    return [f"{key}={'null' if value is None else value}" for key, value in choices.items()]


# ---- The table


@pytest.mark.parametrize(("choices", "having"), CASES)
def test_every_key_has_an_effect_where_the_table_says_so(choices: dict[str, Any], having: set[str]) -> None:
    config = parse_config(choices)
    assert {key for key in KEYS if config.explain_unused(key) is None} == having


@pytest.mark.parametrize(("choices", "having"), CASES)
def test_a_key_without_effect_is_refused_even_at_its_default(
    choices: dict[str, Any], having: set[str], messages: list[str]
) -> None:
    values = parse_config(choices).values()
    for key in KEYS:
        messages.clear()
        given = [*choices_text(choices), f"{key}={yaml.safe_dump(values[key]).splitlines()[0]}"]
        if key in having or key in SOURCE_KEYS:
            read_config([], given)
            assert len(messages) == (key not in having)
            assert all(f"{key}: has no effect with " in line for line in messages)
        else:
            with pytest.raises(InputError, match=f"^{key}: has no effect with .*; it is for [^\n]*$"):
                read_config([], given)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random images of 8 x 8."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    np.save(folder / "x.npy", (rng.normal(size=(24, 3)) @ rng.normal(size=(3, 64)) * 20).reshape(24, 8, 8))
    return folder / "x.npy"


@pytest.mark.parametrize(("choices", "having"), CASES)
def test_a_key_without_effect_changes_nothing_but_rounding(
    choices: dict[str, Any], having: set[str], images: Path
) -> None:
    sizes = SIZES.get(choices.get("model", ""), {"K": 3, "embed-dim": 2})
    small = {
        "task": f"npy:{images}", "width": 8, "channels": 2, "batch-size": 16, "restarts": 2, "moves": 1, **sizes,
        **choices,
    }  # fmt: skip

    def train(**more: Any) -> tuple[dict[str, torch.Tensor], float]:
        config = parse_config({**small, **more})
        set_up_torch(config)
        task = load_task(config.task, config.data_dir, config.centring, config.seed)
        model = build_model(config, task.shape)
        trainer = build_trainer(config, model, task.train, task.shape)
        trainer.initialise()
        for _ in range(2):
            if not trainer.finished:
                trainer.epoch()
        return model.state_dict(), metrics.mean_l2(model, task.test)

    state, mean_l2 = train()
    for key in sorted(set(KEYS) - having):
        other, other_mean_l2 = train(**{key: OTHER[key]})
        for name, tensor in state.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-4, msg=f"{key}: {name}")
        assert other_mean_l2 == pytest.approx(mean_l2, rel=1e-5), key


@pytest.mark.parametrize(("choices", "having"), CASES)
def test_the_used_values_give_the_same_config_again(
    choices: dict[str, Any], having: set[str], messages: list[str]
) -> None:
    for more in ({}, {"lr": 0.5}, {"beta": 0.5}, {"n-step": 9}):
        config = parse_config({**choices, **more})
        messages.clear()
        assert read_config([], choices_text(config.used_values())) == config
        unused = [key for key in more if key not in having]
        assert config.used_values().keys() == having | set(unused) and len(messages) == len(unused)


# ---- Errors and warnings


def test_all_files_together_decide_and_the_error_names_the_file_of_the_key(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("trainer: gradient\nbatch-size: 70\n")
    two.write_text("trainer: closed-form\n")
    assert read_config([two, one]).batch_size == 70
    with pytest.raises(InputError, match="one.yaml: batch-size: has no effect with trainer closed-form"):
        read_config([one, two])
    with pytest.raises(InputError, match="one.yaml: batch-size"):
        read_config([one], ["trainer=closed-form"])


def test_the_source_documents_keys_without_effect_give_one_warning(tmp_path: Path, messages: list[str]) -> None:
    file = tmp_path / "six.yaml"
    file.write_text("K: 3\nembed-dim: 2\nbeta: 0.01\nn-step: 5\nlr: 1e-2\ntask: subspaces\ninference: least-squares\n")
    config = read_config([file])
    assert config.lr == 1e-2 and len(messages) == 1
    assert "lr: has no effect with trainer closed-form" in messages[0] and "n-step: has no effect" in messages[0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_have_no_key_without_effect(path: Path, messages: list[str]) -> None:
    read_config([path])
    assert messages == []
