"""The report as a file: self-contained, escaped, small, and right in its numbers."""

import base64
import hashlib
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
from typer.testing import CliRunner

from llgae_cli.cli.app import app
from llgae_cli.errors import InputError
from llgae_cli.evaluation import evaluate_checkpoint
from llgae_cli.report import explorer, page, write_report
from llgae_cli.report.front import prepare_front
from llgae_cli.sweep import Leaderboard

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictured.train(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def text(checkpoint: Path) -> str:
    write_report([checkpoint], checkpoint.parent / "report.html")
    return (checkpoint.parent / "report.html").read_text(encoding="utf-8")


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.alone: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data"):
                self.addresses.append(value or "")
            if name == "style" or name.startswith("on"):
                self.alone.append(f"{tag} {name}")
        if tag == "img" and not dict(attrs).get("alt"):
            self.alone.append("img without words")


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(part: dict[str, str], width: int) -> np.ndarray:
    whole = np.frombuffer(base64.b64decode(part["values"]), "<i2").reshape(-1, width)
    return whole * np.frombuffer(base64.b64decode(part["scale"]), "<f4")[:, None]


def test_the_page_needs_nothing_but_itself(text: str) -> None:
    links = Links()
    links.feed(text)
    assert all(address.startswith(("data:", "#")) for address in links.addresses)
    assert links.alone == []
    assert len(text) < 3_000_000


def test_the_policy_allows_its_own_script_and_style_alone(text: str) -> None:
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for tag in ("script", "style"):
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inline) == 1
        digest = base64.b64encode(hashlib.sha256(inline[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_numbers_are_the_metrics(text: str, checkpoint: Path) -> None:
    metrics = evaluate_checkpoint(checkpoint).metrics
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text.split('id="numbers"')[1]))
    assert f"Mean L2, test {metrics.mean_l2:.2f}" in plain
    assert f"PSNR {metrics.psnr:.2f}" in plain and f"{metrics.explained_variance:.2%}" in plain
    assert "Mean L2, component 3" in plain


def test_the_packed_model_draws_within_a_grey_level(text: str, checkpoint: Path) -> None:
    evaluated, packed = evaluate_checkpoint(checkpoint), data_of(text)["checkpoints"][0]
    order = [component["k"] for component in packed["components"]]
    assert order == evaluated.by_use().tolist()
    mu, W = unpacked(packed["mu"], 64), unpacked(packed["W"], 64).reshape(4, 3, 64)
    for at, k in enumerate(order):
        B = evaluated.axes.B[k].numpy()
        for a in 4 * np.array([[1, 1, 1], [-1, 1, -1], [0, 0, 0]]):
            b = evaluated.axes.mean[k].numpy() + B @ a
            true = evaluated.model.mu[k].detach().numpy() + evaluated.model.W[k].detach().numpy() @ b
            assert np.abs(mu[at] + b @ W[at] - true).max() < 0.1


def test_codes_are_the_models_and_runners_up_follow(text: str, checkpoint: Path) -> None:
    evaluated, data = evaluate_checkpoint(checkpoint), data_of(text)
    packed, images = data["checkpoints"][0], next(iter(data["images"].values()))
    assert len(images["rows"]) == len(packed["codes"]) == 60
    for row, best in zip(images["rows"], packed["codes"], strict=True):
        assert packed["components"][best[0]["at"]]["k"] == evaluated.k[row]
        losses = [code["mean_l2"] for code in best]
        assert losses[0] == pytest.approx(evaluated.residual[row], rel=1e-4) and losses == sorted(losses)


def test_a_small_budget_keeps_the_most_used_components(checkpoint: Path) -> None:
    evaluated = evaluate_checkpoint(checkpoint)
    packed = explorer.pack_model(evaluated, 2 * 1100)
    assert packed is not None and [one["k"] for one in packed["components"]] == evaluated.by_use()[:2].tolist()
    codes = explorer.pack_codes(evaluated, np.arange(20), [0, 2])
    assert {code["at"] for best in codes for code in best} == {0, 1}
    assert explorer.pack_model(evaluated, 100) is None


KINDS = {
    "K = 1": {"K": 1},
    "E = 0": {"embed_dim": 0},
    "lines": {"task": pictured.vectors, "K": 3, "embed_dim": 2},
    "colours": {"task": pictured.colours, "K": 3, "embed_dim": 2, "inference": "least-squares"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_a_page(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FIGURES", {"usage": page.FIGURES["usage"]})  # the others are test_figures.py's
    keys = dict(KINDS[kind])
    if callable(keys.get("task")):
        keys["task"] = keys["task"](tmp_path)  # type: ignore[operator]
    text = page.render([evaluate_checkpoint(pictured.train(tmp_path, **keys))])
    assert len(data_of(text)["checkpoints"]) == 1


def test_hostile_names_are_text(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FIGURES", {})
    evaluated = evaluate_checkpoint(checkpoint)
    object.__setattr__(evaluated.task, "name", HOSTILE)
    object.__setattr__(evaluated.task, "classes", (HOSTILE, "\u2028", "{{ 7 * 7 }}", "]]>--><!--"))
    evaluated.checkpoint.provenance[HOSTILE] = HOSTILE
    text = page.render([evaluated])
    assert "<script>alert" not in text and "\u2028" not in text.split('id="data"')[1].split("</script>")[0]
    assert html.escape(HOSTILE) in text and "{{ 7 * 7 }}" in text
    assert HOSTILE in data_of(text)["images"].popitem()[1]["names"]


def test_script_json_reads_back_and_cannot_end_a_script() -> None:
    value = {"</script>": ["<!--", "&amp;", "\u2028\u2029", "ä"]}
    packed = page.dump_for_script(value)
    assert json.loads(packed) == value and not set("<>&\u2028\u2029") & set(packed)


def test_checkpoints_stand_side_by_side(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FIGURES", {})
    other = pictured.train(tmp_path, K=2)
    write_report([checkpoint, other, checkpoint], tmp_path / "r.html")
    data = data_of((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert len(data["images"]) == 1 and len({one["name"] for one in data["checkpoints"]}) == 3


def test_a_sweep_shows_its_leaderboard(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FIGURES", {})
    rows = [
        {"checkpoint": "gone.pkl", "mean_l2": 90.5, "K": 2, "note": HOSTILE},
        {"checkpoint": str(checkpoint), "mean_l2": 80.25, "K": 4, "note": "b"},
        {"checkpoint": None, "mean_l2": None, "K": 8, "note": "c"},
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    done = CliRunner().invoke(app, ["report", str(tmp_path), "-o", str(tmp_path / "r.html"), "--json"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "80.25" in text and "1 of them failed" in text and html.escape(HOSTILE) in text
    assert len(data_of(text)["checkpoints"]) == 1


def test_failures_of_a_sweep_are_listed_after_its_rows(tmp_path: Path) -> None:
    rows = [{"checkpoint": "b", "mean_l2": 2.0, "K": 1, "validation_mean_l2": 1.0}, {"checkpoint": "a", "mean_l2": 1.0}]
    failed = [{"cell": "x", "label": "K 3", "reason": "killed", "last_line": "", "log": "log.txt"}]
    document = {"sweep": "s", "swept": ["K"], "ranked_by": "validation_mean_l2", "rows": rows, "failed": failed}
    (tmp_path / "results.json").write_text(json.dumps(document))
    write_report([tmp_path], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "3 runs, 1 of them failed" in text
    assert re.findall(r'<td class="path[^>]*>([^<]*)</td>', text) == ["b", "a", "K 3: killed"]


@pytest.mark.parametrize("content", [None, "{", '{"rows": 3}', "[1]"])
def test_a_folder_that_is_no_sweep_is_an_input_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError):
        write_report([tmp_path], tmp_path / "r.html")


@pytest.mark.parametrize(("task", "unit"), [("subspaces", "squared units of the data"), ("mnist", "grey levels²")])
def test_a_leaderboard_without_checkpoints_names_the_unit_of_its_task(tmp_path: Path, task: str, unit: str) -> None:
    rows = [{"checkpoint": "gone.pkl", "mean_l2": 2.0, "K": 1, "task": task}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    write_report([tmp_path], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"unit: {unit}" in text and text.count("grey levels") == unit.count("grey levels")


def test_labels_of_a_sweep_cover_no_point() -> None:
    bits = [0.0, 3.7, 15.4, 46.9, 61.4, 63.5, 114.0]
    errors = [4653.0, 2424.0, 1062.0, 648.1, 579.9, 648.1, 446.0]
    rows = [
        {"K": 90 + i, "embed_dim": 20, "validation_bits_coded": x, "validation_mean_l2": y}
        for i, (x, y) in enumerate(zip(bits, errors, strict=True))
    ]
    front = prepare_front(Leaderboard("s", ["K", "embed_dim"], "validation_mean_l2", rows, []))
    assert front is not None and front["front"] == 6
    for point in front["points"]:
        at, width = point["place"], 7 * len(point["label"])
        left = at["x"] if at["anchor"] == "start" else at["x"] - width
        covered = [
            other["row"]
            for other in front["points"]
            if left < other["x"] < left + width and at["y"] - 10 < other["y"] < at["y"] + 2
        ]
        assert not covered, point["label"]
