"""The command line from outside: what it prints, what it exits with, and one clear line for every mistake."""

import json
import os
import pickle
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import yaml
from command_line import BY_GRADIENT, FAST, Command, check_refused  # tests/command_line.py
from PIL import Image

from llgae_cli import experiment
from llgae_cli.config import KEYS, read_config
from llgae_cli.storage import load
from llgae_cli.storage.checkpoint import pack
from llgae_cli.tasks import download, published

GRADIENT = ("-c", "gradient.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed-form checkpoint of the config fast.yaml."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "fast.yaml").write_text(FAST + f"checkpoint-dir: {folder}\n")
    outcome = experiment.train(read_config([folder / "fast.yaml"]))
    assert outcome.checkpoint is not None
    return outcome.checkpoint


def outside(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "llgae_cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# ---- Bad input: the config


@pytest.mark.parametrize(
    "line, words",
    [
        ("n_stepp: 3", ("unknown key 'n_stepp'", "did you mean 'n-step'")),
        ("zzz: 3", ("unknown key 'zzz'",)),
        ("K: eleven", ("K:", '"eleven"', "valid integer")),
        ("K: 1.5", ("K:", "1.5", "valid integer")),
        ("K: true", ("K:", "true", "valid integer")),
        ("K: [1, 2]", ("K:", "[1, 2]", "valid integer")),
        ("K: 0", ("K:", "0", "greater than or equal to 1")),
        ("K:", ("K:", "null")),
        ("embed-dim: -1", ("embed-dim:", "-1", "greater than or equal to 0")),
        ("beta: -0.5", ("beta:", "-0.5", "greater than 0")),
        ("beta: 0", ("beta:", "greater than 0")),
        ("beta: .inf", ("beta:", "finite number")),
        ("lr: .nan", ("lr:", "finite number")),
        ("flip: true", ("flip:", "no effect with trainer closed-form")),
        ("trainer: gradient\nweight-decay: 0.1", ("weight-decay:", "no effect with optimizer rmsprop")),
        ("window: 2", ("window:", "no effect with model llgae", "shift")),
        ("model: pca\nK: 2", ("K: 2", "model pca")),
        ("model: gae\ntrainer: closed-form", ("trainer:", "gradient")),
        ("n-step: 0", ("n-step: 0", "at least 1,")),
        ("n-step: -1", ("n-step:", "greater than or equal to 0")),
        ("restarts: many", ("restarts:", '"many"', "valid integer", "'auto'")),
        ("inference: colapse", ("inference:", '"colapse"', "'loop'", "'least-squares'", "did you mean 'collapse'")),
        ("trainer: gradiant", ("trainer:", "did you mean 'gradient'")),
        ("optimizer: adm", ("optimizer:", "'rmsprop'", "did you mean 'adam'")),
        ("validation: 0.9", ("validation:", "0.9", "0.5")),
        ("seed: -1", ("seed:", "-1")),
        ("epochs: 0", ("epochs:", "0", "greater than or equal to 1")),
        ("task: fashion-mnits", ("fashion-mnits", "did you mean 'fashion-mnist'", "npy:PATH")),
        ("device: gpu", ("device:", '"gpu"', "'cuda'")),
        ("beta: 1\nbeta: 2", ("line 2", "given twice")),
        ("K: [1", ("not valid YAML",)),
        ("K: !!python/object/apply:os.mkdir [pwned]", ("not valid YAML",)),
        ("? [a]\n: 1", ("a key must be plain text",)),
    ],
)
def test_a_wrong_key_or_value_is_one_line_with_the_file(llgae: Command, line: str, words: tuple[str, ...]) -> None:
    Path("bad.yaml").write_text(line + "\n")
    said = llgae("train", "--config", "fast.yaml", "--config", "bad.yaml")
    names_the_file = not line.startswith("task:")  # which is looked at once the files are read
    check_refused(said, *words, *(["bad.yaml"] if names_the_file else []))
    assert not Path("pwned").exists() and not list(Path().rglob("*.pkl"))


@pytest.mark.parametrize(
    "raw, words",
    [
        (None, ("no such config file", "did you mean 'fast.yaml'")),
        (b"", ("empty", "K: 11")),
        (b"# only a comment\n", ("empty",)),
        (b"\x80\x02\x00\xff\xfe", ("not a text file",)),
        (b"K: 1\x00\n", ("not valid YAML",)),
        (b"- K: 11\n- beta: 0.1\n", ("holds a list", "mapping")),
        (b"just words\n", ("holds a str", "mapping")),
        (b"[" * 1100, ("nested too deeply",)),
    ],
)
def test_a_file_that_is_no_config(llgae: Command, raw: bytes | None, words: tuple[str, ...]) -> None:
    if raw is not None:
        Path("fats.yaml").write_bytes(raw)
    check_refused(llgae("train", "--config", "fats.yaml"), "fats.yaml", *words)
    check_refused(llgae("config", "--config", "fats.yaml"), "fats.yaml", *words)


def test_a_folder_is_no_config(llgae: Command, tmp_path: Path) -> None:
    check_refused(llgae("train", "--config", tmp_path), str(tmp_path), "cannot be read")


@pytest.mark.parametrize(
    "override, words",
    [
        ("K", ("-S K", "expected key=value")),
        ("k=3", ("unknown key 'k'",)),
        ("emmbed_dim=3", ("unknown key 'emmbed_dim'", "did you mean 'embed-dim'")),
        ("K=0", ("K: 0 is not allowed",)),
        ("K=", ("K: null is not allowed",)),
        ("K=: :", ("not valid YAML",)),
    ],
)
def test_a_wrong_override_is_one_line(llgae: Command, override: str, words: tuple[str, ...]) -> None:
    check_refused(llgae("train", "-c", "fast.yaml", "-S", override), *words)


@pytest.mark.parametrize(
    "override, words",
    [
        ("embed-dim=65", ("embed-dim: 65", "64 values")),
        ("K=4001", ("K: 4001", "4000 training samples")),
        ("checkpoint-dir=fast.yaml", ("fast.yaml", "cannot be written")),
        ("checkpoint-dir=fast.yaml/below", ("fast.yaml/below", "cannot be written")),
        ("checkpoint-dir=/proc/none", ("/proc/none", "cannot be written")),
    ],
)
def test_a_config_that_does_not_fit_its_data_or_its_disk(llgae: Command, override: str, words: tuple[str, ...]) -> None:
    check_refused(llgae("train", "-c", "fast.yaml", "-S", override), *words)


def test_a_config_that_no_checkpoints_name_can_hold(llgae: Command) -> None:
    check_refused(llgae("train", *GRADIENT, "-S", "n-step=1000000000"), "n-step: 1000000000", "999999999")


def test_a_gaussian_prior_needs_a_small_beta_in_closed_form(llgae: Command) -> None:
    said = llgae("train", "-c", "fast.yaml", "-S", "prior=gaussian", "-S", "beta=1.5")
    check_refused(said, "beta: 1.5", "gaussian", "below 1")


def test_usage_errors_end_in_code_2(llgae: Command) -> None:
    for arguments in (
        ("trian",),
        ("train",),
        ("train", "-c", "fast.yaml", "--foo"),
        ("eval",),
        ("eval", "x", "--split", "all"),
    ):
        said = llgae(*arguments)
        assert said.code == 2 and said.out == "" and "Traceback" not in said.err


# ---- Bad input: the data


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.full((50, 4), np.nan), ("row 0 holds NaN",)),
        (np.zeros(5), ("shape 5", "N x D")),
        (np.array([[Evil(), 1], [2, 3]], dtype=object), ("pickled", "never loaded")),
        (np.zeros((0, 5)), ("holds no rows",)),
    ],
)
def test_an_npy_file_that_cannot_be_trained_on(llgae: Command, array: np.ndarray, words: tuple[str, ...]) -> None:
    np.save("x.npy", array, allow_pickle=True)
    check_refused(llgae("train", "-c", "fast.yaml", "-S", "task=npy:x.npy"), "x.npy", *words)
    check_refused(llgae("data", "npy:x.npy"), "x.npy", *words)
    assert not Path("pwned").exists()


def test_a_broken_image_is_named(llgae: Command) -> None:
    Path("faces").mkdir()
    for i in range(3):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(f"faces/{i}.png")
    Path("faces/1.png").write_bytes(Path("faces/1.png").read_bytes()[:40])
    check_refused(llgae("train", "-c", "fast.yaml", "-S", "task=images:faces"), "faces/1.png", "broken image")


def test_a_dataset_that_cannot_be_had_names_the_ways_out(llgae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise URLError("no network")

    nobody = type("datasets", (), {"FashionMNIST": unreachable, "MNIST": unreachable})
    monkeypatch.setattr(download, "datasets", lambda: nobody)
    monkeypatch.setattr(published, "DEBIAN_FASHION_MNIST", Path("nowhere"))
    for task, ways in (("fashion-mnist", "apt-get install"), ("mnist", "gzipped or not")):
        said = llgae("train", "-c", "fast.yaml", "-S", f"task={task}", "-S", "data-dir=here")
        check_refused(said, ways, "no network", "here")
        check_refused(llgae("data", task, "--data-dir", "here"), ways)


# ---- Bad input: checkpoints


def test_a_checkpoint_that_is_missing_has_the_nearest_name(llgae: Command, trained: Path) -> None:
    missing = trained.with_name(trained.name.replace("-K4-", "-K5-"))
    check_refused(llgae("eval", missing), "no such checkpoint", f"did you mean '{trained.name}'")
    check_refused(llgae("eval", trained.parent), "a folder")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_checkpoint(llgae: Command, trained: Path, share: float) -> None:
    whole = trained.read_bytes()
    Path(trained.name).write_bytes(whole[: int(len(whole) * share)])
    check_refused(llgae("eval", trained.name), trained.name)
    check_refused(llgae("train", "-c", "fast.yaml", "--resume", trained.name), trained.name)


def test_a_checkpoint_of_another_format_version(llgae: Command, trained: Path) -> None:
    torch.save({**pack(load(trained)), "format_version": 99}, "later.pkl")
    check_refused(llgae("eval", "later.pkl"), "later.pkl", "format version 99", "version 1")


def test_a_hostile_pickle_does_nothing(llgae: Command, trained: Path) -> None:
    Path("raw.pkl").write_bytes(pickle.dumps(Evil()))
    torch.save({**pack(load(trained)), "extras": {"x": Evil()}}, "zip.pkl")
    for name in ("raw.pkl", "zip.pkl"):
        check_refused(llgae("eval", name), name)
        check_refused(llgae("train", "-c", "fast.yaml", "--resume", name), name)
        assert not Path("pwned").exists()


@pytest.mark.parametrize("change", ["shape", "config", "missing"])
def test_a_checkpoint_whose_parts_do_not_fit(llgae: Command, trained: Path, change: str) -> None:
    content = pack(load(trained))
    if change == "shape":
        content["state"] = {**content["state"], "mu": torch.zeros(2, 2)}
    elif change == "config":
        content["config"] = {**content["config"], "K": -1}
    else:
        content["data"] = {}
    torch.save(content, "odd.pkl")
    check_refused(llgae("eval", "odd.pkl"), "odd.pkl")


def test_a_renamed_checkpoint_is_reported_and_its_content_counts(llgae: Command, trained: Path) -> None:
    renamed = trained.name.replace("-K4-", "-K7-").replace("-beta0.01-", "-beta0.5-")
    shutil.copy(trained, renamed)
    said = llgae("eval", renamed, "--json")
    document = json.loads(said.out)
    assert said.code == 0 and len(document["usage"]) == 4
    assert "K 7 for 4" in said.err and "beta 0.5 for 0.01" in said.err and said.err.count("\n") == 1
    assert len(document["warnings"]) == 1 and "K 7 for 4" in document["warnings"][0]


def test_another_task_must_have_the_same_dimension(llgae: Command, trained: Path) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(30, 5)))
    check_refused(llgae("eval", trained, "--task", "npy:x.npy"), "5 values", "64")
    check_refused(llgae("eval", trained, "--task", "subspace"), "did you mean 'subspaces'")
    np.save("y.npy", np.random.default_rng(0).normal(size=(30, 64)))
    said = llgae("eval", trained, "--task", "npy:y.npy", "--json")
    assert said.code == 0 and json.loads(said.out)["recorded"] is None and said.err == ""


def test_an_unknown_device_is_one_line(llgae: Command, trained: Path) -> None:
    check_refused(llgae("eval", trained, "--device", "gpu"), "device: gpu", "cpu")


def test_a_changed_config_cannot_be_resumed(llgae: Command, trained: Path) -> None:
    said = llgae("train", "-c", "fast.yaml", "-S", "K=5", "--resume", trained)
    check_refused(said, "the config has changed", "K is 5 and was 4")
    check_refused(llgae("train", "-c", "fast.yaml", "--resume", "last"), "no checkpoint of this config")
    said = llgae("train", "-c", "fast.yaml", "-S", f"checkpoint-dir={trained.parent}", "-S", "K=5", "--resume", "last")
    check_refused(said, "no checkpoint of this config", "other configs there: 1")


# ---- Bad input, as a user meets it


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("train", "--config", "none.yaml"), ("none.yaml", "no such config file")),
        (("train", "--config", "fast.yaml", "-S", "kk=1"), ("unknown key 'kk'",)),
        (("runs", "nowhere"), ("nowhere", "no such folder")),
    ],
)
def test_a_process_of_its_own_says_the_same(tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    (tmp_path / "fast.yaml").write_text(FAST)
    check_refused(outside(*arguments, cwd=tmp_path), *words)


def test_a_wrong_listing_is_one_line(llgae: Command) -> None:
    check_refused(llgae("runs", ".", "--sort", "meanl2"), "unknown column 'meanl2'", "mean_l2")
    check_refused(llgae("runs", ".", "-w", "K~3"), "K~3", "K=11")


# ---- Results


def test_train_prints_one_json_document(llgae: Command) -> None:
    said = llgae("train", "--config", "fast.yaml", "--json")
    document = json.loads(said.out)
    assert said.code == 0 and "epoch 1/3" in said.err
    assert {"checkpoint", "mean_l2", "train_mean_l2", "epochs", "seconds"} <= document.keys()
    checkpoint = load(Path(document["checkpoint"]))
    assert document["mean_l2"] == checkpoint.mean_l2 and document["train_mean_l2"] == checkpoint.train_mean_l2
    assert document["epochs"] == checkpoint.epoch and f"_{document['mean_l2']:.5f}.pkl" in document["checkpoint"]
    rows = json.loads(llgae("runs", "--json").out)
    assert [row["checkpoint"] for row in rows] == [document["checkpoint"]] and rows[0]["K"] == 4


def test_quiet_says_the_result_alone(llgae: Command) -> None:
    said = llgae("train", "--config", "fast.yaml", "-q")
    assert said.code == 0 and said.err == "" and said.out.startswith("mean L2 ")


@pytest.mark.slow
def test_eval_in_another_process_and_folder_gives_the_same_number(tmp_path: Path, trained: Path) -> None:
    done = outside("eval", trained, "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == ""
    assert document["mean_l2"] == pytest.approx(load(trained).mean_l2, rel=1e-6) == document["recorded"]
    assert {"checkpoint", "task", "split", "mean_l2", "usage", "perplexity"} <= document.keys()
    assert sum(document["usage"]) == pytest.approx(1) and len(document["per_class"]) == 4
    assert list(tmp_path.iterdir()) == []


def test_eval_of_the_training_samples_gives_the_recorded_number(llgae: Command, trained: Path) -> None:
    document = json.loads(llgae("eval", trained, "--split", "train", "--json").out)
    assert document["mean_l2"] == pytest.approx(load(trained).train_mean_l2, rel=1e-6) == document["recorded"]


def test_eval_in_words(llgae: Command, trained: Path) -> None:
    said = llgae("eval", trained)
    assert said.code == 0 and said.err == "" and f"{load(trained).mean_l2:.5f}" in said.out
    assert "4 of 4 in use" in said.out and "component 3" in said.out


def test_data_says_what_and_where(llgae: Command) -> None:
    document = json.loads(llgae("data", "subspaces", "--json").out)
    assert document["train"] == 4000 and document["shape"] == [8, 8] and "seed" in document["source"]


def test_configs_merge_the_later_over_the_earlier(llgae: Command) -> None:
    Path("a.yaml").write_text("K: 5\nembed_dim: 7\nlr: 1e-3\nmodel-name: LLGAE\n")
    Path("b.yaml").write_text("K: 6\nbeta: 2E-2\nn_step: 9\ntrainer: gradient\n")
    said = llgae("config", "-c", "a.yaml", "--config", "b.yaml", "-S", "n-step=3", "-S", "batch_size=70", "--json")
    resolved = json.loads(said.out)
    wanted = {"K": 6, "embed-dim": 7, "lr": 0.001, "model": "llgae", "beta": 0.02, "n-step": 3, "batch-size": 70}
    assert wanted.items() <= resolved.items() and not {"tol", "restarts", "window", "decoder"} & resolved.keys()


def test_the_resolved_config_resolves_to_itself(llgae: Command) -> None:
    said = llgae("config", "-c", "fast.yaml")
    Path("resolved.yaml").write_text(said.out)
    assert llgae("config", "-c", "resolved.yaml").out == said.out
    assert yaml.safe_load(said.out)["K"] == 4 and "# identity cfg" in said.out


def test_the_schema_describes_every_key_and_no_other(llgae: Command) -> None:
    schema = json.loads(llgae("config", "--schema").out)
    assert schema["type"] == "object" and schema["additionalProperties"] is False
    assert list(schema["properties"]) == list(KEYS) and not schema.get("required")
    defaults = {}
    for options in (
        ("bits=40",),
        ("model=gae", "latent-start=learnt"),
        ("model=deep-llgae", "ascent-method=bfgs"),
        ("model=deep-llgae",),
        ("model=gae", "optimizer=adamw"),
        ("model=soft-llgae", "gates=embedding"),
        *((f"model={model}",) for model in ("soft-llgae", "residual", "shift", "denoising-autoencoder", "gae")),
        ("trainer=gradient",),
        ("trainer=closed-form",),
    ):
        said = llgae("config", "--json", *(word for option in options for word in ("-S", option)))
        defaults |= json.loads(said.out)
    defaults["gates"] = "data"
    defaults["centring"] = "auto"  # which is sample for a published task
    for key, property_ in schema["properties"].items():
        assert property_["description"] and property_["default"] == defaults[key]
        assert {"type", "enum", "const", "anyOf"} & property_.keys()
    assert schema["properties"]["K"]["minimum"] == 1 and schema["properties"]["beta"]["exclusiveMinimum"] == 0
    assert schema["properties"]["inference"]["enum"] == ["loop", "collapse", "least-squares"]


def test_neutral_keys_alone_keep_a_configs_identity(llgae: Command) -> None:
    def identity(*overrides: str) -> str:
        return llgae("config", "-c", "fast.yaml", *(part for o in overrides for part in ("-S", o))).out.splitlines()[0]

    assert identity() == identity("epochs=9", "checkpoint-dir=x", "save-every=3", "threads=2", "device=cpu")
    assert len({identity(), identity("K=5"), identity("seed=1"), identity("beta=0.02"), identity("tol=0")}) == 5


def test_one_checkpoint_has_one_mean_l2_for_every_number_of_steps(llgae: Command, trained: Path) -> None:
    content = pack(load(trained))
    found = []
    for inference, T in (("loop", 1), ("loop", 5), ("collapse", 5), ("collapse", 1000), ("least-squares", 5)):
        torch.save({**content, "config": {**content["config"], "inference": inference, "n-step": T}}, "other.pkl")
        found.append(json.loads(llgae("eval", "other.pkl", "--json").out)["mean_l2"])
    assert found == pytest.approx([load(trained).mean_l2] * 5, rel=1e-6)


# ---- Going on, and being stopped


def weights(path: str) -> dict[str, torch.Tensor]:
    return load(Path(path)).state


@pytest.mark.parametrize("trainer", ["gradient", "closed-form"])
def test_resume_last_continues_as_if_never_stopped(llgae: Command, trainer: str) -> None:
    own = GRADIENT if trainer == "gradient" else ("-c", "fast.yaml", "-S", "tol=0")
    options = (*own, "-S", "K=6", "--json")

    def train(epochs: int, *more: str) -> dict[str, Any]:
        return json.loads(llgae("train", *options, "-S", f"epochs={epochs}", *more).out)

    whole = train(4, "-S", "checkpoint-dir=whole")
    train(2)
    resumed = train(4, "--resume", "last")
    for key in ("mean_l2", "train_mean_l2", "epochs"):
        assert resumed[key] == whole[key]
    assert resumed["epochs"] == 4 or trainer == "closed-form"
    one, other = weights(whole["checkpoint"]), weights(resumed["checkpoint"])
    assert all(torch.equal(one[key], other[key]) for key in one)
    again = train(4, "--resume", "last")  # nothing is left to do
    assert again["checkpoint"] == resumed["checkpoint"] and again["mean_l2"] == resumed["mean_l2"]


def test_save_every_keeps_one_file_an_epoch(llgae: Command) -> None:
    said = llgae("train", *GRADIENT, "-S", "save-every=1", "--json")
    names = sorted(path.name for path in Path("checkpoints").iterdir())
    assert [load(Path("checkpoints") / name).epoch for name in names] == [1, 2, 3]
    assert Path(json.loads(said.out)["checkpoint"]).name == names[-1]
    assert llgae("train", *GRADIENT, "-S", "save-every=1").code == 0
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == names  # the same run again adds nothing


@pytest.mark.slow
@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_last_epoch_and_ends(llgae: Command, signum: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "llgae_cli", "train", *GRADIENT, "-S", "epochs=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stdout is not None
        for line in process.stderr:
            if line.startswith("epoch 3/"):
                process.send_signal(signum)
                break
        rest, out = process.stderr.read(), process.stdout.read()
    assert process.returncode == code and out == "" and "Traceback" not in rest
    assert "llgae: interrupted; saved checkpoints/S28-" in rest and "--resume last" in rest
    (saved,) = Path("checkpoints").iterdir()
    epoch = load(saved).epoch
    assert epoch >= 3 and f"epoch {epoch}/" in "epoch 3/" + rest
    said = llgae("train", *GRADIENT, "-S", f"epochs={epoch + 1}", "--resume", "last", "--json")
    assert said.code == 0 and json.loads(said.out)["epochs"] == epoch + 1


def test_a_signal_while_the_last_numbers_are_taken_still_saves(llgae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(experiment, "measure", interrupted)
    said = llgae("train", *GRADIENT)
    assert said.code == 130 and "saved checkpoints/S28-" in said.err
    assert load(next(Path("checkpoints").iterdir())).epoch == 3


def test_a_diverged_training_fails_and_leaves_no_file(llgae: Command) -> None:
    for override in ("lr=1e9", "beta=1e9"):
        said = llgae("train", *GRADIENT, "-S", override)
        assert said.code == 1 and said.out == "" and "Traceback" not in said.err
        assert "in epoch 1" in said.err.splitlines()[-1] and "lower lr or beta" in said.err.splitlines()[-1]
        assert list(Path("checkpoints").iterdir()) == []


def test_a_beta_beyond_the_limit_is_a_warning_that_names_it(llgae: Command) -> None:
    said = llgae("train", *GRADIENT, "-S", "beta=10", "-S", "epochs=1", "-q", "-S", "lr=1e-6")
    assert said.code == 0
    for line in said.err.splitlines():
        assert line.startswith("llgae: warning: beta: 10 is beyond ") and "= 2 / max eigenvalue of W^T W" in line
    assert said.err
    stable = llgae("train", *GRADIENT, "-S", "beta=0.1", "-S", "epochs=1", "-q")
    assert stable.code == 0 and stable.err == ""


def test_a_model_that_overflows_on_other_data_is_no_number(llgae: Command) -> None:
    options = (*GRADIENT, "-S", "beta=100", "-S", "n-step=40", "-S", "epochs=1", "-S", "lr=1e-9")
    said = llgae("train", *options)
    assert said.code == 1 and "became" in said.err and list(Path("checkpoints").iterdir()) == []


def test_memory_that_runs_out_is_one_line(llgae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "build_model", lambda config, D: torch.zeros(1 << 50))
    said = llgae("train", "-c", "fast.yaml")
    assert (said.code, said.out) == (1, "") and said.err.count("\n") == 1 and "out of memory" in said.err


# ---- Streams


def test_a_reader_that_leaves_ends_a_listing_in_silence(tmp_path: Path, trained: Path) -> None:
    for i in range(3000):
        (tmp_path / trained.name.replace("-K4-", f"-K{i + 1}-")).touch()
    for option in ("", "--json"):
        script = f"{sys.executable} -m llgae_cli runs . {option} | head -1; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        first, code = done.stdout.splitlines()
        assert code == "0" and done.stderr == "" and first.startswith("[" if option else "id\t")


@pytest.mark.slow
def test_a_logs_reader_that_leaves_does_not_end_a_run(tmp_path: Path) -> None:
    (tmp_path / "gradient.yaml").write_text(BY_GRADIENT)
    script = f"{sys.executable} -m llgae_cli train -c gradient.yaml -S epochs=5 2> >(head -1 >&2)"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "5 epochs" in done.stdout and done.stderr.count("\n") == 1


@pytest.mark.parametrize("no_color", [False, True])
def test_colours_are_for_terminals_that_want_them(tmp_path: Path, no_color: bool) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_color else {})}
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llgae_cli", "train", "--config", "none.yaml"]
    subprocess.run(command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs, check=False)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "no such config file" in said and ("\x1b[1;31m" not in said) == no_color


TEXTS = """
import json
from typer.main import get_command
from llgae_cli.cli.app import app
from llgae_cli.config import schema

commands = get_command(app).commands
texts = {name: [command.help, {each.name: each.help for each in command.params}] for name, command in commands.items()}
print(json.dumps([texts, schema(), __debug__]))
"""


def printed(arguments: list[object], **environment: str) -> str:
    """What Python prints when it is started in this environment with these arguments."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


def test_help_explains_every_command_and_option(llgae: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    texts, *_ = json.loads(printed(["-c", TEXTS]))
    assert {"train", "eval", "runs", "data", "config", "bench", "encode", "decode", "sample"} < texts.keys()
    overview = llgae("--help").out
    for name, (text, options) in texts.items():
        assert text and all(options.values()), name
        said = llgae(name, "--help")
        assert said.code == 0 and said.err == "" and text.split()[0] in said.out
        assert name in ("sweep-cell", "shard-worker") or " ".join(text.split()[:2]) in overview


@pytest.mark.slow
def test_without_docstrings_and_assertions_everything_is_as_with_them(tmp_path: Path) -> None:
    *ours, debug = json.loads(printed(["-c", TEXTS], PYTHONOPTIMIZE=""))
    *theirs, stripped = json.loads(printed(["-c", TEXTS], PYTHONOPTIMIZE="2"))
    assert theirs == ours and debug and not stripped
    (tmp_path / "fast.yaml").write_text(FAST + f"checkpoint-dir: {tmp_path}\n")
    trained = printed(["-m", "llgae_cli", "train", "-c", tmp_path / "fast.yaml", "--json"], PYTHONOPTIMIZE="2")
    assert Path(json.loads(trained)["checkpoint"]).is_file()
