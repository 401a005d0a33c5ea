"""The schema of a config: defaults, rules by model, identities, later keys, descriptions and the lines of errors."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from llgae_cli.config import KEYS, Config, parse_config, parse_key, parse_override, read_stored, schema
from llgae_cli.config.model_rules import MODEL_RULES
from llgae_cli.errors import InputError

MODELS = get_args(Config.model_fields["model"].annotation)


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as error:
        parse_config(values, dict.fromkeys(values, "c.yaml"))
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- Defaults and the rules of models


def test_the_defaults_are_the_headline_run() -> None:
    config = Config()
    assert (config.task, config.model, config.K, config.embed_dim) == ("fashion-mnist-compress", "llgae", 11, 20)
    assert (config.beta, config.n_step, config.lr, config.trainer) == (0.01, 5, 1e-3, "closed-form")
    with pytest.raises(ValidationError, match="frozen"):
        config.K = 3  # type: ignore[misc]


def test_every_model_has_its_rules() -> None:
    assert set(MODEL_RULES) == set(MODELS)
    assert all(set(rules.fixed) | set(rules.defaults) <= set(KEYS) for rules in MODEL_RULES.values())


@pytest.mark.parametrize("model", MODELS)
def test_a_model_has_its_own_defaults_and_refuses_other_values_of_what_it_fixes(model: str) -> None:
    rules = MODEL_RULES[model]
    values = parse_config({"model": model}).values()
    assert {**rules.fixed, **rules.defaults}.items() <= values.items()
    for key, value in rules.fixed.items():
        assert parse_config({"model": model, key: value}).is_fixed(key)
        other = "closed-form" if key == "trainer" else value + 1
        message = refusal({"model": model, key: other})
        assert message == f"c.yaml: {key}: {other} is not allowed with model {model}: its {key} is {value}"
    assert not parse_config({"model": model}).is_fixed("beta")


def test_weight_decay_is_a_default_only_with_the_optimiser_that_uses_it() -> None:
    assert parse_config({"model": "autoencoder"}).weight_decay == 0.01
    assert parse_config({"model": "autoencoder", "optimizer": "sgd"}).weight_decay == 0.0


def test_names_are_accepted_in_the_source_documents_spelling() -> None:
    assert parse_config({"task": "fashion-mnist"}) == parse_config({"task": "fashion-mnist-compress"})
    assert parse_config({"model": "LLGAE"}) == Config()
    assert parse_key("model-name", "c.yaml") == "model" and parse_key("embed_dim", "c.yaml") == "embed-dim"


def test_no_step_is_allowed_only_where_the_ascent_starts_elsewhere_than_at_0() -> None:
    assert "latent-start" in refusal({"n-step": 0})
    assert parse_config({"model": "gae", "latent-start": "linear", "n-step": 0}).n_step == 0
    assert parse_config({"model": "autoencoder"}).n_step == 0


def test_training_takes_the_ascent_in_at_most_all_epochs_and_only_if_encoding_does() -> None:
    given = {"model": "deep-llgae", "ascent": "given", "epochs": 3}
    assert "ascent-epochs: 4 of 3 epochs" in refusal({**given, "ascent-epochs": 4})
    assert "ascent-steps: with n-step 0" in refusal({**given, "n-step": 0, "ascent-steps": 2})
    assert parse_config({**given, "ascent-epochs": 3}).ascent_epochs == 3


def test_only_one_of_bits_and_step_is_allowed() -> None:
    assert "only one of bits and step" in refusal({"bits": 80.0, "step": 130.0})
    assert (parse_config({"bits": 80}).bits, parse_config({"step": None}).step) == (80.0, None)
    assert "bits: 0 is not allowed" in refusal({"bits": 0})


# ---- What is stored, and the identity of it

IDENTITIES = {  # as the versions computed them that wrote the first checkpoints with these keys
    "033c7a556b": {},
    "c6eabcac5c": {"trainer": "gradient"},
    "bee7a5f619": {"lr": 1e-2},
    "4813de8c0b": {"trainer": "gradient", "batch-size": 70, "optimizer": "adam"},
    "70683aaa5c": {"model": "pca"},
    "5355b72003": {"model": "kmeans"},
    "3ab35e9db8": {"model": "residual", "levels": 3},
    "fd58dd2fa4": {"model": "shift", "window": 2},
    "57196af784": {"model": "soft-llgae"},
    "d3d206987c": {"model": "gae", "decoder": "mlp"},
    "af0705b2b8": {"model": "deep-llgae"},
    "89aba5d75c": {"model": "autoencoder"},
    "8cc9729aba": {"model": "denoising-autoencoder", "noise": 20.0},
    "17862900a9": {"model": "autoencoder", "optimizer": "sgd"},
    "c1dc8b6dcb": {"inference": "least-squares", "prior": "gaussian", "n-step": 7, "batch-size": 99},
    "9dc12deae3": {"tol": 2e-5, "n-step": 5},
}


@pytest.mark.parametrize(("identity", "values"), IDENTITIES.items())
def test_stored_configs_load_with_the_identity_they_had(identity: str, values: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config(values)
    assert config.identity() == identity
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.plain()))
    assert read_stored(tmp_path / "config.yaml") == config
    assert parse_config(config.plain()) == config == parse_config(config.values())


def test_a_later_key_is_stored_only_where_it_has_not_its_default() -> None:
    later = [key for key, notes in KEYS.items() if notes.later]
    assert "window" in later and "beta" not in later
    assert not set(later) & Config().plain().keys()
    assert parse_config({"model": "shift", "window": 2}).plain()["window"] == 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 7), ("data-dir", "elsewhere"), ("checkpoint-dir", "elsewhere"), ("save-every", 7),
        ("eval-every", 7), ("device", "cpu"), ("threads", 7), ("figures", False),
    ],
)  # fmt: skip
def test_a_neutral_key_changes_no_identity(key: str, value: Any) -> None:
    assert parse_config({key: value}) != Config() and KEYS[key].neutral
    assert parse_config({key: value}).identity() == Config().identity()


@pytest.mark.parametrize("schedule", ["one-cycle", "trapezoidal"])
def test_the_number_of_epochs_changes_the_identity_where_the_learning_rate_follows_it(schedule: str) -> None:
    one, other = (parse_config({"trainer": "gradient", "schedule": schedule, "epochs": epochs}) for epochs in (5, 6))
    assert one.identity() != other.identity()


# ---- What is printed


def test_the_schema_describes_every_key_and_what_it_is_for() -> None:
    descriptions = {key: value["description"] for key, value in schema()["properties"].items()}
    assert list(descriptions) == list(KEYS) and all(descriptions.values())
    assert "(for trainer gradient)" in descriptions["lr"] and "(for model shift)" in descriptions["window"]
    for key, notes in KEYS.items():
        assert ("(for" in descriptions[key]) == (notes.effect is not None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"K": 0}, "c.yaml: K: 0 is not allowed: input should be greater than or equal to 1"),
        ({"restarts": 1.5}, "c.yaml: restarts: 1.5 is not allowed: input should be a valid integer or 'auto'"),
        ({"optimizer": "adm"}, "did you mean 'adam'?"),
        ({"lr": True}, "c.yaml: lr: true is not allowed"),
        ({"beta": float("nan")}, "c.yaml: beta: NaN is not allowed"),
        ({"K": 0, "embed-dim": -1}, "; c.yaml: embed-dim: -1 is not allowed"),
        ({"windw": 1}, "c.yaml: unknown key 'windw'; did you mean 'window'?"),
    ],
)
def test_an_error_is_one_line_with_file_key_and_value(values: dict[str, Any], message: str) -> None:
    assert message in refusal(values)


def test_an_override_is_a_key_and_a_yaml_value() -> None:
    assert parse_override("embed_dim=1e-3")[:2] == ("embed-dim", 1e-3)
    assert parse_override("K=")[:2] == ("K", None)
    for override in ("K", "kk=3", "K=[", "=3"):
        with pytest.raises(InputError, match="^-S "):
            parse_override(override)
