"""The report of a table: names, words and counts, without a word about images."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pictured  # tests/pictured.py
import pytest

from llgae_cli.errors import InputError
from llgae_cli.evaluation import Evaluated, evaluate_checkpoint
from llgae_cli.figures.table import Chart, Points
from llgae_cli.report import page
from llgae_cli.report.charts import prepare_charts

HOSTILE = (
    "<script>alert(1)</script>",
    "two\nlines",
    "$x^2$",
    "quote \"' & </title>",
    "n" * 300,
    "温度",
    "{{ 7 * 7 }}",
    "",
)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    folder = tmp_path_factory.mktemp("table")
    task = pictured.vectors(folder, D=len(HOSTILE))
    made = evaluate_checkpoint(pictured.train(folder, task=task, K=3, embed_dim=2, centring="none"))
    made.split_samples.names = HOSTILE  # type: ignore[attr-defined,unused-ignore]
    return made


@pytest.fixture(scope="module")
def text(evaluated: Evaluated) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "FIGURES", {"training": page.FIGURES["training"]})  # the others are test_figures.py's
        return page.render([evaluated])


def words_of(text: str) -> str:
    """Everything on the page that is read, labels of pictures included, without style and script."""
    body = re.sub(r"<(style|script).*?</\1>", " ", text, flags=re.DOTALL)
    return re.sub(r"(data:image|(id|for|aria-labelledby|class|http-equiv)=\"|img-src)[^\"]*", " ", body).lower()


def test_a_table_has_no_grey_levels_and_no_images(text: str) -> None:
    found = words_of(text)
    assert [word for word in ("grey level", "image", "pixel", "psnr") if word in found] == []
    assert "test rows" in found and "scaled units" in found


def test_names_are_text(text: str) -> None:
    for name in HOSTILE[:-1]:
        assert (
            f'title="{html.escape(" ".join(name.split())).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")}"'
            in text
        )
    assert "<script>alert" not in text and "49" not in re.findall(r'title="([^"]*)"', text)


def test_every_chart_is_on_the_page(text: str) -> None:
    titles = re.findall(r'<figure class="plate chart">\s*<figcaption>([^<]*)<', text)
    assert titles == [
        "Means of the components", "Principal axes of the components", "Parity", "Codes",
        "Residual by variable and component", "Map of the components", "Atlas", "Samples from the model",
    ]  # fmt: skip
    assert "style=" not in words_of(text)


@pytest.mark.numeric
def test_the_explorer_has_the_variables_in_their_own_units(text: str, evaluated: Evaluated) -> None:
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    table, rows = data["checkpoints"][0]["table"], np.arange(evaluated.split_samples.N)
    v = evaluated.originals(rows).astype(np.float64)
    assert sorted(table["order"]) == list(range(8)) and table["names"][table["order"].index(0)] == HOSTILE[0]
    assert table["mean"] == pytest.approx(v.mean(0)[table["order"]], abs=1e-5)
    assert table["std"] == pytest.approx(v.std(0)[table["order"]], rel=1e-4)
    assert data["checkpoints"][0]["words"]["unit"] == "scaled units²"


def test_variables_that_the_data_lacks_are_an_input_error(evaluated: Evaluated, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no variable is called"):
        page.view_tables([evaluated], colour="v1")
    images = evaluate_checkpoint(pictured.train(tmp_path, K=2, embed_dim=1))
    with pytest.raises(InputError, match="images have no variables"):
        page.view_tables([images], colour="v1")


def test_of_400_variables_20_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FIGURES", {})
    task = pictured.vectors(tmp_path, D=400)
    text = page.render([evaluate_checkpoint(pictured.train(tmp_path, task=task, K=2, embed_dim=2, centring="none"))])
    assert text.count("of 400 variables; 380 are left out") == 3
    assert (
        len(json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["checkpoints"][0]["table"]["names"])
        == 20
    )  # type: ignore[index]


@pytest.mark.numeric
def test_points_stand_where_their_axes_say() -> None:
    points = Points(
        "", np.array([0.0, 10.0]), np.array([1.0, 3.0]), np.array([0, 0]), ("",), "x", "y", (0.0, 10.0), (1.0, 3.0)
    )
    panel = prepare_charts({"map": Chart("", "", (points,))})[0]["panels"][0]
    assert panel["paths"] == ["M46.0 216.0h0M312.0 8.0h0"]
    assert [(tick.at, tick.text) for tick in panel["x_ticks"]][::2] == [(46.0, "0"), (179.0, "5"), (312.0, "10")]
