"""The report's page in a real browser: headless Chromium over file://, with the network watched."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pictured  # tests/pictured.py
import pytest
import torch
from browsing import canvas, click, embedded, said, set_range  # tests/browsing.py

from llgae_cli.codec import Settings
from llgae_cli.codec.exact import Step
from llgae_cli.evaluation import Evaluated, evaluate_checkpoint
from llgae_cli.evaluation.rate import compute_costs
from llgae_cli.models import Code
from llgae_cli.report import write_report

pytestmark = pytest.mark.slow
HOSTILE = "<script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of 12 x 12 images, trained by gradient: its inference takes several steps to arrive."""
    folder = tmp_path_factory.mktemp("report")
    generator = np.random.default_rng(5)
    data = folder / "data"
    data.mkdir()
    for part, n in (("train", 400), ("test", 120)):
        labels = generator.integers(0, 3, n)
        y, x = np.mgrid[:12, :12]
        at = generator.uniform(2, 9, (n, 2))
        width = np.array([1.5, 3.0, 5.0])[labels]
        spots = np.exp(-((y - at[:, :1, None]) ** 2 + (x - at[:, 1:, None]) ** 2) / (2 * width[:, None, None] ** 2))
        np.save(data / f"{part}.npy", (spots * 255).astype(np.uint8))
        np.save(data / f"{part}_labels.npy", labels)
    return pictured.train(folder, task=f"npy:{data}", trainer="gradient", epochs=3, lr=1e-2, beta=0.02, n_step=6)


@pytest.fixture(scope="module")
def page(browser: Any, trained: Path) -> Any:
    write_report([trained], trained.parent / "report.html")
    browser.get((trained.parent / "report.html").as_uri())
    return browser


def grey(values: torch.Tensor) -> np.ndarray:
    return np.clip(np.rint(values.detach().numpy()), 0, 255).reshape(12, 12)


def test_the_canvas_equals_the_python_decoder(page: Any, trained: Path) -> None:
    evaluated = evaluate_checkpoint(trained)
    rows = embedded(page)["images"].popitem()[1]["rows"]
    for place in range(0, len(rows), 5):
        click(page, "images", place)
        row = np.array([rows[place]])
        v, v_hat = evaluated.originals(row), evaluated.reconstructions(row)
        assert np.array_equal(canvas(page, "x"), v[0].reshape(12, 12))
        drawn = np.clip(np.rint(v_hat[0]), 0, 255).reshape(12, 12)
        assert np.abs(canvas(page, "x-hat") - drawn).max() <= 1
        assert f"test sample {rows[place]}." in said(page)
        assert f"Component {evaluated.k[rows[place]]}," in said(page)


def test_sliders_move_along_the_principal_axes(page: Any, trained: Path) -> None:
    evaluated = evaluate_checkpoint(trained)
    for at, k in enumerate(evaluated.by_use()):
        click(page, "components", at)
        before = canvas(page, "x-hat")
        set_range(page, "b-0", 1.5)
        set_range(page, "b-2", -2.0)
        after = canvas(page, "x-hat")
        a = torch.tensor([1.5, 0.0, -2.0], dtype=torch.float64)
        b = evaluated.axes.mean[k] + evaluated.axes.B[k] @ a
        x_hat = evaluated.model.decode(Code(torch.tensor([k]), b[None].float()))
        assert np.abs(after - grey(x_hat[0] + evaluated.grey_levels[k])).max() <= 1
        assert np.abs(after - before).max() > 1
        assert page.execute_script("return document.querySelector('#sliders output').textContent") == "+1.50 sd"


def test_the_inference_climbs_as_the_source_says(page: Any, trained: Path) -> None:
    from llgae_cli.inference import loop

    evaluated = evaluate_checkpoint(trained)
    click(page, "images", 7)
    row = embedded(page)["images"].popitem()[1]["rows"][7]
    x, mean = evaluated.task.test.rows(torch.tensor([row])), evaluated.task.test.means(torch.tensor([row]))
    k = int(evaluated.k[row])
    model = evaluated.model
    losses = []
    for t in range(7):
        set_range(page, "t", t)
        b = loop(x, model.mu[k : k + 1], model.W[k : k + 1], model.beta, t, model.alpha)[:, 0]
        x_hat = model.decode(Code(torch.tensor([k]), b))
        assert np.abs(canvas(page, "x-hat") - grey(x_hat[0] + mean)).max() <= 1
        losses.append(float((x - x_hat.detach()).square().mean()))
        shown = page.execute_script("return document.querySelector('#steps [aria-current]').textContent")
        assert float(shown.rpartition(": ")[2]) == pytest.approx(losses[-1], rel=2e-3)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_the_step_rounds_the_code_as_the_codec_does(page: Any, trained: Path) -> None:
    evaluated = evaluate_checkpoint(trained)
    codec = evaluated.codec
    assert codec is not None
    rows = embedded(page)["images"].popitem()[1]["rows"]
    differences, errors = [], []
    for place in range(0, len(rows), 4):
        click(page, "images", place)
        x = evaluated.split_samples.stored_rows(np.array([rows[place]])).numpy()
        for position in (-8, 0, 4):
            set_range(page, "step", position)
            settings = Settings(Step.nearest(codec.model.step.value * 2 ** (position / 4)))
            codes, costs = codec.rate(x, settings), compute_costs(codec, x, settings)
            if codes.k[0, 0] // codec.model.decoder.levels[0].A != evaluated.k[rows[place]]:
                continue  # the codec may choose a component with cheaper bits
            bits = re.search(r"About ([\d.]+) bits at step ([\d.]+)\.$", said(page))
            assert bits is not None and float(bits[2]) == pytest.approx(settings.step.value, rel=2e-2)
            differences.append(float(bits[1]) - float(costs.k[0] + costs.latents[0].sum()))
            values = codec.model.decoder.decode(codes.k, codes.s, codes.q, settings.step)
            errors.append(np.abs(canvas(page, "x-hat") - grey(torch.from_numpy(values))).mean())
    set_range(page, "step", -13)
    # The page rounds b as inferred in six steps, the codec the projection; some latents are on the edge of two cells.
    assert len(errors) > 15 and np.median(errors) < 1
    assert np.abs(differences).max() < 4 and abs(np.mean(differences)) < 0.5
    assert "bits at step" not in said(page)


def test_runners_up_are_drawn_with_their_mean_l2(page: Any) -> None:
    click(page, "images", 3)
    texts = page.execute_script("return [...document.querySelectorAll('#runners button')].map(b => b.textContent)")
    values = [float(text.rpartition(" ")[2]) for text in texts]
    assert len(texts) == 4 and values == sorted(values)
    click(page, "runners", 1)
    assert f"Mean L2 {texts[1].rpartition(' ')[2]} " in said(page)


def test_everything_can_be_reached_and_has_a_name(page: Any) -> None:
    nameless = page.execute_script(
        "const all = 'button, input, select, canvas[role=img], [role=region], img';"
        "return [...document.querySelectorAll(all)].filter(e =>"
        "!(e.getAttribute('aria-label') || e.getAttribute('alt') || e.textContent.trim() || (e.labels || []).length))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []
    ids = page.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.execute_script("return document.querySelectorAll('[tabindex]:not([tabindex=\"0\"])').length") == 0
    assert page.execute_script("return document.getElementById('said').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluated, Path]:
    """The report of a table of 40 variables with long and hostile names."""
    from llgae_cli.report import page as assembly

    folder = tmp_path_factory.mktemp("table")
    task = pictured.vectors(folder, D=40)
    evaluated = evaluate_checkpoint(pictured.train(folder, task=task, K=3, embed_dim=2, centring="none"))
    names = (HOSTILE, "温度" * 40, "a name," * 30, *(f"channel {d} of a sensor with a long name" for d in range(37)))
    evaluated.split_samples.names = names  # type: ignore[attr-defined,unused-ignore]
    path = folder / "table.html"
    path.write_text(assembly.render([evaluated]), encoding="utf-8")
    return evaluated, path


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_table_fits_the_screen(browser: Any, table: tuple[Evaluated, Path], width: int, theme: str) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(table[1].as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = (
        "return [...document.querySelectorAll('.panel .bars, .panel svg.points')]"
        ".filter(e => e.scrollWidth > e.parentElement.clientWidth + 1).length"
    )
    assert browser.execute_script(wide) == 0
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_sliders_of_a_table_show_variables_in_their_own_units(browser: Any, table: tuple[Evaluated, Path]) -> None:
    evaluated, path = table
    browser.get(path.as_uri())
    click(browser, "components", 1)
    set_range(browser, "b-0", 1.5)
    k = int(evaluated.by_use()[1])
    b = evaluated.axes.mean[k] + evaluated.axes.B[k] @ torch.tensor([1.5, 0.0], dtype=torch.float64)
    decoded = evaluated.decode(k, b[None])[0]
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#variables tbody tr')]"
        ".map(r => [r.cells[0].title, r.cells[2].textContent])"
    )
    names = list(evaluated.split_samples.names)  # type: ignore[attr-defined,unused-ignore,arg-type]
    assert len(shown) == 20
    for name, value in shown:
        assert float(value.replace("−", "-")) == pytest.approx(decoded[names.index(name)], abs=6e-3)
    assert "20 are left out" in browser.execute_script("return document.getElementById('variables-note').textContent")
    click(browser, "images", 3)
    assert "est row" in said(browser) and "units" in said(browser) and "grey" not in said(browser)
    assert browser.execute_script("return document.querySelector('#variables thead').textContent").endswith("residual")
    assert browser.execute_script("return document.getElementById('panels').hidden")


def test_hostile_names_are_text(browser: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llgae_cli.report import page as assembly

    evaluated = evaluate_checkpoint(trained)
    object.__setattr__(
        evaluated.task, "classes", (HOSTILE, "</script><img src=x onerror=alert(1)>", "\u2028${1}{{ 7*7 }}")
    )
    object.__setattr__(evaluated.task, "name", HOSTILE)
    path = trained.parent / "hostile.html"
    path.write_text(assembly.render([evaluated]), encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.title == f"{HOSTILE} · llgae report"
    click(browser, "images", 0)
    assert said(browser).startswith(HOSTILE)
    assert browser.execute_script("return document.querySelectorAll('body img[src=x]').length") == 0


def test_no_error_and_no_request(page: Any, trained: Path) -> None:
    page.get_log("performance")  # what came before, the browser's own start page among it
    page.get((trained.parent / "report.html").as_uri())
    click(page, "images", 1)
    click(page, "components", 1)
    entries = page.get_log("browser")
    assert [entry for entry in entries if entry["level"] in ("SEVERE", "WARNING")] == []
    wanted = set()
    for entry in page.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            wanted.add(message["params"]["request"]["url"].split(":")[0])
    assert wanted <= {"file", "data"}
    blocked = page.execute_async_script(
        "const done = arguments[0]; fetch('https://example.org/').then(() => done('sent'), () => done('refused'))"
    )
    assert blocked == "refused"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


@pytest.fixture(scope="module")
def swept(trained: Path) -> Path:
    """The page of a sweep of twelve cells, one of which has a checkpoint."""
    rows = [
        {
            "cell": f"c{i}", "status": "done", "checkpoint": str(trained) if i == 3 else f"gone{i}.pkl",
            "K": 2 + i, "note": HOSTILE if i == 5 else "x", "mean_l2": 800.0 + 10 * i, "bits_coded": 20.0 - i + i % 3,
            "seconds": 1.5,
        }
        for i in range(12)
    ]  # fmt: skip
    folder = trained.parent / "sweep"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"sweep": "s", "swept": ["K", "note"], "rows": rows}))
    write_report([folder], folder / "report.html")
    return folder / "report.html"


def columns(page: Any, at: int) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#cells tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[arguments[0]].textContent)"
    )
    return page.execute_script(script, at)


def test_the_table_of_a_sweep_sorts_and_filters(browser: Any, swept: Path) -> None:
    browser.get(swept.as_uri())
    sort = "document.querySelector('#board th[data-sort=K] button').click()"
    assert columns(browser, 2) == [str(2 + i) for i in range(12)]
    browser.execute_script(sort)
    browser.execute_script(sort)
    assert columns(browser, 2) == [str(13 - i) for i in range(12)]  # as numbers: 13 before 9
    heads = "return document.querySelector('#board th[data-sort=K]').getAttribute('aria-sort')"
    assert browser.execute_script(heads) == "descending"
    write = (
        "const f = document.getElementById('filter'); f.value = arguments[0]; f.dispatchEvent(new Event('input'));"
        "return document.getElementById('shown').textContent"
    )
    assert browser.execute_script(write, "K<=4 x") == "3 of 12 cells" and columns(browser, 2) == ["4", "3", "2"]
    assert browser.execute_script(write, "no such word") == "0 of 12 cells"
    assert browser.execute_script(write, "") == "12 cells"
    browser.execute_script("document.getElementById('front-only').click()")
    on_front = browser.execute_script("return document.querySelectorAll('.cell.on-front').length")
    assert len(columns(browser, 2)) == on_front > 0
    assert browser.title == "Sweep sweep · llgae report"  # a hostile value is text


def test_points_of_a_sweep_are_labelled_and_work_by_keyboard_alone(browser: Any, swept: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(swept.as_uri())
    assert browser.execute_script("return document.querySelectorAll('.cell text').length") == 12
    ticks = browser.execute_script(
        "return ['x', 'y'].map(c => document.querySelectorAll('#front-plot text.' + c).length)"
    )
    assert min(ticks) >= 3
    places = browser.execute_script(
        "const s = document.querySelector('#front-plot svg').getBoundingClientRect();"
        "return [...document.querySelectorAll('.cell circle:not(.reach)')].map(c => c.getBoundingClientRect())"
        ".map(r => [(r.x - s.x) / s.width, (r.y - s.y) / s.height])"
    )
    spans = np.ptp(np.array(places), axis=0)
    assert spans.min() > 0.6  # the axes fit the data
    assert len(browser.find_elements("css selector", ".cell[tabindex='0']")) == 1  # one stop of the Tab key
    bits = [20 - i + i % 3 for i in range(12)]
    pressed = (Keys.HOME, 9), (Keys.ARROW_RIGHT, 10), (Keys.ARROW_UP, 11), (Keys.ARROW_DOWN, 10), (Keys.ARROW_LEFT, 9)
    assert sorted(range(12), key=lambda i: bits[i])[:2] == [9, 10]
    browser.execute_script("document.getElementById('point-2').focus()")
    for key, row in (*pressed, (Keys.ARROW_LEFT, 9)):
        browser.switch_to.active_element.send_keys(key)
        assert browser.execute_script("return document.activeElement.id") == f"point-{row}"
    browser.execute_script(
        "const f = document.getElementById('filter'); f.value = 'K=5'; f.dispatchEvent(new Event('input'))"
    )
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)  # over points that the filter hides
    assert browser.execute_script("return document.activeElement.id") == "point-3"
    shown = browser.execute_script("return document.getElementById('cell-shown').textContent")
    assert shown.startswith("K=5 note=x: mean L2 830.00")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.closest('#explorer') !== null")
    browser.execute_script("document.getElementById('point-4').focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)  # has no checkpoint: its row
    assert browser.execute_script("return document.querySelector('#cells tr.chosen').dataset.row") == "4"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_a_sweep_fits_the_screen(browser: Any, swept: Path, width: int, theme: str) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(swept.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
