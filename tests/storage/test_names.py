"""The names of checkpoints: name -> text -> name, the original's spelling, tables read from names alone."""

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llgae_cli.config import Config
from llgae_cli.errors import InputError, RunError
from llgae_cli.storage.names import MAX_SLUG, CheckpointName, name_of, slug
from llgae_cli.storage.run_table import COLUMNS, count_others, filter_rows, list_runs, sort_rows

OURS = (
    "S28-taskfashion-mnist-compress-model-nameLLGAE-K11-embed-dim20-beta0.01-n-step5-loglr-3.0"
    "-trainergradient-cfg3f9a2c_540_768.06268.pkl"
)
ORIGINAL = (
    "-S28-taskfashion-mnist-compress-shuffle1-depth1-graph-dim784-embed-dim20-iter-per-layer-1-kernel-size11"
    "-model-nameLLGAE-beta0.01-n-step5-p-null0.0-loglr-3.0_540_768.06268.pkl"
)
NAME = CheckpointName(
    seed=28, task="fashion-mnist-compress", model="llgae", K=11, embed_dim=20, beta=0.01, n_step=5, lr=0.001,
    trainer="gradient", config_id="3f9a2c", epoch=540, mean_l2=768.06268,
)  # fmt: skip

counts = st.integers(1, 10**9 - 1)
positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
pieces = st.sampled_from(["-K11-", "-model-name", "-model-nameLLGAE", "_1_2.0", "-cfg3f9a2c", ".pkl", "a", "Z", "."])
slugs = st.one_of(
    st.from_regex(rf"[A-Za-z0-9._-]{{1,{MAX_SLUG}}}", fullmatch=True),
    st.lists(pieces, min_size=1, max_size=6).map(lambda parts: "".join(parts)[:MAX_SLUG]),
)
names = st.builds(
    CheckpointName,
    seed=st.integers(0, 2**63 - 1),
    task=slugs,
    model=st.from_regex(r"[a-z][a-z0-9-]{0,23}", fullmatch=True),
    K=counts,
    embed_dim=st.integers(0, 10**9 - 1),
    beta=positive,
    n_step=counts,
    lr=positive,
    trainer=st.one_of(
        st.sampled_from(["gradient", "closed-form", "x-cfgabcdef"]), st.from_regex(r"[a-z][a-z-]{0,15}", fullmatch=True)
    ),
    config_id=st.from_regex(r"[0-9a-f]{6}([0-9a-f]{4})?", fullmatch=True),
    epoch=st.integers(0, 10**9 - 1),
    mean_l2=st.one_of(st.floats(0, 1e5), st.floats(0, allow_infinity=False)),
)
originals = st.builds(
    CheckpointName,
    seed=st.integers(0, 2**63 - 1),
    task=slugs,
    model=st.sampled_from(["llgae", "lgae"]),
    K=counts,
    embed_dim=counts,
    beta=positive,
    n_step=counts,
    lr=positive,
    trainer=st.just("gradient"),
    config_id=st.just(""),
    epoch=counts,
    mean_l2=st.floats(0, 1e5),
    extra=st.fixed_dictionaries(
        {"shuffle": st.just("1"), "depth": st.just("1"), "graph-dim": st.just("784"), "p-null": st.just("0.0"),
         "iter-per-layer": st.sampled_from(["-1", "3"])}
    ),
)  # fmt: skip


def test_the_name_of_the_contract_reads_and_writes_as_it_stands() -> None:
    assert NAME.format() == OURS
    assert CheckpointName.parse(OURS) == NAME


def test_the_originals_name_is_read_and_written_as_it_stands() -> None:
    name = CheckpointName.parse(ORIGINAL)
    assert (name.seed, name.task, name.model, name.K, name.embed_dim) == (28, "fashion-mnist-compress", "llgae", 11, 20)
    assert (name.beta, name.n_step, name.lr, name.epoch, name.mean_l2) == (0.01, 5, 0.001, 540, 768.06268)
    assert (name.trainer, name.config_id) == ("gradient", "")
    assert name.extra == {"shuffle": "1", "depth": "1", "graph-dim": "784", "iter-per-layer": "-1", "p-null": "0.0"}
    assert name.format() == ORIGINAL


def test_the_originals_keys_are_read_in_any_order_and_a_task_may_look_like_them() -> None:
    turned = (
        "-S28-taskx-depth3-K11-beta0.5-loglr-3.0-n-step5-p-null0.0-beta0.01-model-nameLLGAE-kernel-size11"
        "-iter-per-layer-1-embed-dim20-graph-dim784-depth1-shuffle1_540_768.06268.pkl"
    )
    name = CheckpointName.parse(turned)
    assert name.task == "x-depth3-K11-beta0.5"
    assert (name.beta, name.K, name.extra["depth"], name.extra["iter-per-layer"]) == (0.01, 11, "1", "-1")


def _check_round_trip(name: CheckpointName) -> None:
    text = name.format()
    again = CheckpointName.parse(text)
    assert again.format() == text
    assert len(text.encode()) <= 255
    assert not set("=,/ ") & set(text)
    assert math.isclose(again.lr, name.lr, rel_tol=1e-5)
    # half of the last decimal, or of the last bit where the number has no such decimal
    assert abs(again.mean_l2 - name.mean_l2) <= 0.500001e-5 + math.ulp(name.mean_l2)
    assert {**vars(again), "lr": 0, "mean_l2": 0} == {**vars(name), "lr": 0, "mean_l2": 0}


@settings(deadline=None, max_examples=200)
@given(names)
def test_name_to_text_to_name(name: CheckpointName) -> None:
    assert not name.format().startswith("-")
    _check_round_trip(name)


@settings(deadline=None, max_examples=150)
@given(originals)
def test_the_originals_name_to_text_to_name(name: CheckpointName) -> None:
    assume(len(name.format()) <= 255)  # the original set no bound
    _check_round_trip(name)


@pytest.mark.parametrize("lr", [1e-3, 3e-4, 5e-4, 9e-4, 1e-5, 0.1, 1.0, 2.0, 0.00025, 12345.0])
def test_a_learning_rate_as_people_write_it_comes_back_exactly(lr: float) -> None:
    name = CheckpointName(**{**vars(NAME), "lr": lr})
    assert CheckpointName.parse(name.format()).lr == lr


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=300), st.text(alphabet=OURS + ORIGINAL, max_size=255)))
def test_any_other_text_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        CheckpointName.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "-S1-task" + "-depth1" * 20_000,
        "S1-task" + "-model-nameA-K1-embed-dim1" * 20_000,
        "S1-task" + "a" * 200 + "_1_1",
        "-S1-task-" + "-iter-per-layer-1" * 13 + "_1_1.pkl",
        "_1" * 120 + ".pkl",
        OURS + "\n",
        OURS.replace("K11", "K١١"),
        OURS.replace("K11", "K0"),
        OURS.replace("S28", "S9999999999999999999"),
        OURS.replace("768.06268", "nan"),
        OURS.replace("768.06268", "1e999"),
        OURS.replace("loglr-3.0", "loglr400.0"),
        OURS.replace("loglr-3.0", "loglr-400.0"),
        "a/" + OURS,
        "",
    ],
)
def test_hostile_names_are_refused_at_once_and_in_one_line(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError) as caught:
        CheckpointName.parse(text)
    assert time.perf_counter() - start < 0.2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_no_name_is_written_for_a_diverged_run(value: float) -> None:
    with pytest.raises(RunError, match="diverged"):
        CheckpointName(**{**vars(NAME), "mean_l2": value}).format()


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", -1), ("seed", 2**63), ("K", 0), ("K", True), ("K", 10**9), ("beta", 0.0), ("lr", math.inf),
     ("task", "../x"), ("task", ""), ("task", "a" * 41), ("model", "LLGAE"), ("trainer", "a b"),
     ("config_id", "3F9A2C"), ("extra", {"depth": "1"}), ("n_step", 1.5)],
)  # fmt: skip
def test_a_field_that_no_name_can_hold_is_refused(key: str, value: object) -> None:
    with pytest.raises(InputError, match=key.replace("_", "-")):
        CheckpointName(**{**vars(NAME), key: value})


def test_a_names_hash_agrees_with_its_equality() -> None:
    assert len({NAME, CheckpointName.parse(OURS), CheckpointName.parse(ORIGINAL)}) == 2


def test_name_of_a_config() -> None:
    config = Config(trainer="gradient", task="npy:/data/my set.npy")
    name = name_of(config, 3, 12.5)
    assert name.config_id == config.identity()
    assert name.task == slug("npy:/data/my set.npy")
    assert (name.K, name.lr, name.trainer, name.epoch, name.mean_l2) == (11, 1e-3, "gradient", 3, 12.5)
    assert CheckpointName.parse(name.format()) == name


def test_a_plain_task_is_its_own_slug_and_a_path_keeps_its_last_part() -> None:
    assert slug("fashion-mnist-compress") == "fashion-mnist-compress"
    assert slug("npy:/data/my set.npy").startswith("npy-my-set.npy-")
    assert slug("images:/data/faces/").startswith("images-faces-")


@settings(deadline=None, max_examples=400)
@given(st.one_of(st.text(min_size=1, max_size=400), st.text(alphabet="npy:./ -ab", min_size=1, max_size=30)))
def test_a_slug_is_safe_in_a_file_name(task: str) -> None:
    text = slug(task)
    CheckpointName(**{**vars(NAME), "task": text})  # refuses anything else than a slug
    assert ".." not in text
    assert text[0] not in ".-"
    assert text[-1] not in ".-"


TASKS = [
    "npy:/a/x.npy", "npy:/b/x.npy", "npy:x.npy", "npy-x.npy", "npy:x.npy ", "npy:X.npy", "images:x.npy", "..", ".", "a",
    "a-", "-a", "a--b", "a-b", "é", "e", "ü", "日本", "a" * 40, "a" * 41, "a" * 300, "npy:\udcff", "task", "",
]  # fmt: skip


def test_two_tasks_never_share_a_slug() -> None:
    tasks = TASKS + [slug(task) for task in TASKS if slug(task) != task]  # a slug is a task's name too
    assert len({slug(task) for task in tasks}) == len(tasks)


def _fill(folder: Path) -> None:
    for epoch, components, value, trainer in (
        (1, 11, 900.0, "gradient"),
        (2, 11, 768.06268, "closed-form"),
        (3, 5, 1000.0, "gradient"),
    ):
        what = {"epoch": epoch, "K": components, "mean_l2": value, "trainer": trainer, "lr": 3e-4}
        name = CheckpointName(**{**vars(NAME), **what})
        (folder / name.format()).touch()
    (folder / "sweep").mkdir(parents=True)
    (folder / "sweep" / ORIGINAL).touch()
    (folder / "model.pkl").touch()
    (folder / "notes.txt").touch()
    (folder / f".tmp-1-{OURS}").touch()
    (folder / OURS).mkdir()


def test_a_link_round_in_a_circle_and_a_bottomless_folder_are_not_followed(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c" / "d"
    (deep / "e").mkdir(parents=True)
    (deep / OURS).touch()
    (deep / "e" / OURS).touch()
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    assert [row["checkpoint"] for row in list_runs(tmp_path)] == [str(deep / OURS)]


def test_a_folders_table_is_read_from_names_alone(tmp_path: Path) -> None:
    _fill(tmp_path)
    rows = list_runs(tmp_path)
    assert [row["mean_l2"] for row in rows] == [768.06268, 768.06268, 900.0, 1000.0]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert all(Path(row["checkpoint"]).is_file() for row in rows)
    assert count_others(tmp_path) == 1
    with pytest.raises(InputError, match="no such folder"):
        list_runs(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be listed"):
        list_runs(tmp_path / "model.pkl")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], 4),
        (["K=11"], 3),
        (["K!=11"], 1),
        (["K=11", "mean_l2<800"], 2),
        (["mean-l2 <= 768.06268"], 2),
        (["lr=3e-4"], 3),
        (["lr!=0.0003"], 1),
        (["lr<=3e-4"], 3),
        (["lr>=3e-4"], 4),
        (["lr>3e-4"], 1),
        (["trainer=closed-form"], 1),
        (["model=LLGAE"], 4),
        (["task!=mnist"], 4),
        (["seed=28", "epoch>2"], 2),
    ],
)
def test_conditions_on_a_table(tmp_path: Path, conditions: list[str], expected: int) -> None:
    _fill(tmp_path)
    assert len(filter_rows(list_runs(tmp_path), conditions)) == expected


@pytest.mark.parametrize(
    ("condition", "line"),
    [
        ("epochs=3", "did you mean 'epoch'"),
        ("k=3", "there are checkpoint, seed"),
        ("K=many", "not a number"),
        ("K=nan", "not a number"),
        ("K", "expected a condition"),
        ("task<mnist", "only = and !="),
        ("", "expected a condition"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused(condition: str, line: str) -> None:
    with pytest.raises(InputError, match=line):
        filter_rows([], [condition])


def test_a_table_sorts_by_any_column(tmp_path: Path) -> None:
    _fill(tmp_path)
    rows = list_runs(tmp_path)
    for column in COLUMNS:
        ordered = [row[column] for row in sort_rows(rows, column, reverse=True)]
        assert ordered == sorted(ordered, reverse=True)
    with pytest.raises(InputError, match="did you mean 'mean_l2'"):
        sort_rows(rows, "meanl2")


def test_names_and_tables_do_not_import_torch() -> None:
    program = "import sys, llgae_cli.storage, llgae_cli.storage.run_table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == 0
