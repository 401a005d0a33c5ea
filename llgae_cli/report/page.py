"""The report page: numbers, figures, config, provenance and the explorer in one HTML file that needs no network."""

import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from llgae_cli import __version__
from llgae_cli.errors import InputError, printable
from llgae_cli.evaluation import Evaluated, evaluate_checkpoints, name_models
from llgae_cli.evaluation.evaluated import hide_folders
from llgae_cli.figures import FIGURES, OF_IMAGES
from llgae_cli.figures.style import Theme, encode
from llgae_cli.figures.sweep import panels_by_key
from llgae_cli.figures.table import CHARTS, Chart, TableView
from llgae_cli.figures.table.album import is_table, view_table
from llgae_cli.formatting import five_digits, format_value
from llgae_cli.regular_files import read_bytes
from llgae_cli.report import explorer
from llgae_cli.report.charts import prepare_charts
from llgae_cli.report.front import prepare_front
from llgae_cli.report.network import count_bytes
from llgae_cli.report.numbers import tabulate
from llgae_cli.report.words import choose_words, find_board_unit
from llgae_cli.storage.atomic import write_atomically
from llgae_cli.sweep import Leaderboard

MAX_CHECKPOINTS = 12
MAX_ROWS = 200  # of a leaderboard
FIRST_OF_SWEEP = 3
SCRIPTS = {  # by what needs them
    "variables.js": "explorer",
    "network.js": "explorer",
    "explorer.js": "explorer",
    "sweep.js": "board",
}
MAX_PNG = 1_000_000  # bytes of a picture in a sweep's folder
OF_SWEEP = {
    "mean_l2": ("Mean L2 by the varied keys", "Mean L2 of the sweep's runs; see the leaderboard for the numbers."),
    "rate_distortion": (
        "Rate and distortion",
        "Mean L2 against the bits of a code; see the leaderboard for the numbers.",
    ),
    "importance": ("Importance of the keys", "Bars: how much each key of the search changes each objective."),
    "parallel_coordinates": (
        "Trials of the search",
        "A line for each trial through an axis for each key and objective; see the leaderboard for the numbers.",
    ),
}
VECTOR = frozenset(
    {"training", "usage", "classes", "spectrum", "rate", "sweep"}
)  # lines and bars; the others are pictures
TITLES = {
    "training": "Training",
    "reconstructions": "Reconstructions",
    "atlas": "Atlas",
    "usage": "Use of components",
    "classes": "Classes and components",
    "spectrum": "Spectrum",
    "rate": "Rate and distortion",
    "bits": "Where the bits go",
}
NOTES = {
    "rate": "Each point is the codec with another step of its quantiser: a finer step takes more bits a sample and "
    "leaves less error, down to what the components cannot represent.",
    "bits": "Each cell is what a latent takes in the samples of its component; the bits of k and of the file's framing "
    "are in the table of numbers.",
}


@dataclass(frozen=True)
class Picture:
    """A figure on the page: data URIs for both themes, size in CSS pixels, title, alternative text and a sentence."""

    title: str
    alt: str
    light: str
    dark: str
    width: int
    height: int
    note: str = ""


def write_report(
    sources: Sequence[Path],
    output: Path,
    data_dir: Path | None = None,
    colour: str | None = None,
    over: Sequence[str] = (),
) -> None:
    """Write the page about checkpoints, or about a sweep's folder, to `output`.

    A sweep's page has the leaderboard, its first three checkpoints, and up to nine more in the explorer. `colour` and
    `over`: variables of a table, see `figures.table.TableView`. Raises InputError for sources that are neither, for
    unsound checkpoints, missing data and unknown variables; RunError when the page cannot be written.
    """
    board, paths = None, list(sources)
    more: list[Path] = []
    if len(paths) == 1 and os.path.isdir(paths[0]):  # unlike Path.is_dir, it raises for no name
        board = Leaderboard.read(paths[0])
        paths, more = choose_explored(board, paths[0])
    if not paths and board is None:
        raise InputError("report: give checkpoints, or the folder of a sweep")
    if len(paths) > MAX_CHECKPOINTS:
        raise InputError(f"report: {len(paths)} checkpoints; one page shows at most {MAX_CHECKPOINTS}")
    folders = [path for path in paths if os.path.isdir(path)]
    if folders:
        raise InputError(f"{printable(folders[0], 200)}: a folder among other sources; a sweep needs a page of its own")
    checkpoints = evaluate_checkpoints(paths, data_dir)
    more_checkpoints = evaluate_checkpoints(more, data_dir)
    views = view_tables(checkpoints, colour, over)
    html = render(checkpoints, board, sources[0], views, more_checkpoints)
    with write_atomically(output) as temporary:
        temporary.write_text(html, encoding="utf-8", newline="\n")


def choose_explored(board: Leaderboard, folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the first three checkpoints of a sweep, and those that are in its explorer only, at most twelve in all.

    The latter are those of the front of the page's plot, then the next ones of the leaderboard.
    """
    first = board.find_checkpoints(folder, FIRST_OF_SWEEP)
    plot = prepare_front(board)
    front = [] if plot is None else [board.rows[point["row"]] for point in plot["points"] if point["front"]]
    paths = replace(board, rows=[*front, *board.rows[:MAX_CHECKPOINTS]]).find_checkpoints(folder, 2 * MAX_CHECKPOINTS)
    return first, [path for path in paths if path not in first][: MAX_CHECKPOINTS - len(first)]


def view_tables(
    checkpoints: Sequence[Evaluated], colour: str | None = None, over: Sequence[str] = ()
) -> list[TableView | None]:
    """Return the arrays of each checkpoint's charts, None for images. Raises InputError for an unknown variable."""
    if (colour is not None or over) and not any(map(is_table, checkpoints)):
        raise InputError("--colour and --over: images have no variables to colour by or map over")
    return [view_table(one, colour, over) if is_table(one) else None for one in checkpoints]


def render(
    checkpoints: Sequence[Evaluated],
    board: Leaderboard | None = None,
    folder: Path = Path(),
    views: Sequence[TableView | None] | None = None,
    more: Sequence[Evaluated] = (),
) -> str:
    """Return the page as text.

    `folder`: the sweep's, which gives its name and may hold its pictures. `views`: see `view_tables`. `more`:
    checkpoints that are in the explorer only.
    """
    views = view_tables(checkpoints) if views is None else views
    environment = Environment(
        loader=PackageLoader("llgae_cli.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    if board is not None:
        board = replace(board, rows=_hide_folders(board.rows), failed=_hide_folders(board.failed))
    explored = [*checkpoints, *more]
    every = name_models(explored)
    called = every[: len(checkpoints)]
    data = pack_explorer(explored, every, [*views, *view_tables(more)])
    scripts = [
        name for name, used in SCRIPTS.items() if (board is not None if used == "board" else data["checkpoints"])
    ]
    script, style = "".join(map(_asset, scripts)), _asset("page.css")
    at = {explored[one["at"]].path.name: place for place, one in enumerate(data["checkpoints"])}
    heading = f"Sweep {folder.resolve().name}" if board is not None else _heading(checkpoints)
    return environment.get_template("page.html.j2").render(
        heading=heading,
        version=__version__,
        policy=make_policy(script, style),
        script=Markup(script),
        style=Markup(style),
        data=Markup(dump_for_script(data)),
        explorable=bool(data["checkpoints"]),
        missing=explain_missing(explored, every, {one["at"] for one in data["checkpoints"]}),
        board=board,
        board_unit="" if board is None else find_board_unit(board, checkpoints),
        plot=None if board is None else prepare_front(board),
        costs=[] if board is None else _choose_costs(board),
        explored=[] if board is None else [at.get(Path(str(row.get("checkpoint"))).name) for row in board.rows],
        listed=[] if board is None else [*board.rows, *board.failed][:MAX_ROWS],
        sweep_pictures=[] if board is None else _sweep_pictures(board, folder),
        names=called,
        numbers=tabulate(checkpoints, views),
        words=choose_words(checkpoints),
        checkpoints=[
            {
                "name": name,
                "file": evaluated.path.name,
                "warnings": evaluated.warnings,
                "charts": prepare_charts(_draw_charts(view)),
                "pictures": draw_pictures(evaluated),
                "config": _plain(evaluated.config.plain()),
                "provenance": _plain(evaluated.checkpoint.provenance) | _plain(evaluated.checkpoint.data, "data "),
            }
            for name, evaluated, view in zip(called, checkpoints, views, strict=True)
        ],
        format_cell=format_value,
        five_digits=five_digits,
        file_name=lambda value: Path(value).name if isinstance(value, str) else "",
    )


def _choose_costs(board: Leaderboard) -> list[str]:
    """Return the columns next to the mean L2: bits as coded, on the samples that rank, and seconds, where known."""
    bits = "bits_coded" if board.ranked_by == "mean_l2" else "validation_bits_coded"
    found = [name for name in (bits, "seconds") if any(isinstance(row.get(name), float) for row in board.rows)]
    return found or (["bits_coded"] if any(isinstance(row.get("bits_coded"), float) for row in board.rows) else [])


def _hide_folders(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: hide_folders(value) for key, value in row.items()} for row in rows]


def _plain(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    return {f"{prefix}{key}": format_value(hide_folders(value)) for key, value in values.items()}


def explain_missing(checkpoints: Sequence[Evaluated], called: Sequence[str], explorable: set[int]) -> list[str]:
    """Return a line for each checkpoint that the explorer does not have, with the reason."""
    return [
        f"{called[at]} is not in the explorer, which can decode mu_k + W_k b + network(k, b) only."
        if evaluated.model.decoder_parts() is None
        else f"{called[at]} is not in the explorer: it would make the page too large."
        for at, evaluated in enumerate(checkpoints)
        if at not in explorable
    ]


def make_policy(script: str, style: str) -> str:
    """Return a Content-Security-Policy that forbids network access and allows only this script and style, by hash."""

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; script-src {hashed(script)}; style-src {hashed(style)}; "
        "base-uri 'none'; form-action 'none'"
    )


def dump_for_script(data: Any) -> str:
    r"""Return JSON that is safe inside <script>: no <, > or &, and only ASCII (U+2028 becomes \u2028)."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack_explorer(
    checkpoints: Sequence[Evaluated], names: Sequence[str], views: Sequence[TableView | None]
) -> dict[str, Any]:
    """Return models and test samples for the explorer; checkpoints of the same data share the samples."""
    images: dict[str, dict[str, Any]] = {}
    rows: dict[str, np.ndarray] = {}
    packed, network_budget = [], explorer.NETWORK_BUDGET
    for at, (name, evaluated, view) in enumerate(zip(names, checkpoints, views, strict=True)):
        model = explorer.pack_model(evaluated, explorer.BUDGET // len(checkpoints), network_budget)
        if model is None:
            continue
        parts = evaluated.model.decoder_parts()
        network_budget -= count_bytes(parts.network if parts is not None else None)
        key = f"{evaluated.task.fingerprint}-{evaluated.split_samples.centring}"
        if key not in rows:
            rows[key] = explorer.choose_samples(evaluated)
            images[key] = explorer.pack_samples(evaluated, rows[key])
        embedded = [component["k"] for component in model["components"]]
        codes = explorer.pack_codes(evaluated, rows[key], embedded)
        words = asdict(choose_words([evaluated]))
        table = None if view is None else explorer.pack_table(evaluated, view)
        packed.append({"at": at, "name": name, "images": key, "codes": codes, "words": words, "table": table, **model})
    return {"checkpoints": packed, "images": images}


def _draw_charts(view: TableView | None) -> dict[str, Chart]:
    found = {} if view is None else {name: draw(view) for name, draw in CHARTS.items()}
    return {name: chart for name, chart in found.items() if chart is not None}


def draw_pictures(evaluated: Evaluated) -> list[Picture]:
    """Draw all figures of a checkpoint in both themes."""
    found = []
    for name, draw in FIGURES.items():
        if name in OF_IMAGES and is_table(evaluated):
            continue  # charts are drawn in their place
        light = draw(evaluated, "light")
        dark = draw(evaluated, "dark")
        if light is not None and dark is not None:
            picture = _picture(name, TITLES[name], _alt(name, evaluated), {"light": light, "dark": dark})
            found.append(replace(picture, note=NOTES.get(name, "")))
    return found


def _picture(name: str, title: str, alt: str, figures: dict[Theme, Figure]) -> Picture:
    uris = {theme: _uri(figure, "svg" if name in VECTOR else "png") for theme, figure in figures.items()}
    width, height = (round(side * 100) for side in figures["light"].get_size_inches())
    return Picture(title, alt, uris["light"], uris["dark"], width, height)


def _uri(figure: Figure, kind: str) -> str:
    raw = encode(figure, kind)
    if kind == "png":  # 256 colours: a third of the size, no visible difference
        buffer = io.BytesIO()
        image: Any = Image.open(io.BytesIO(raw))
        palette = image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        palette.save(buffer, "png", optimize=True)
        raw = min(buffer.getvalue(), raw, key=len)
    return f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(raw).decode()}"


def _sweep_pictures(board: Leaderboard, folder: Path) -> list[Picture]:
    """Return the pictures in the sweep's folder; without them, mean L2 against the swept keys."""
    found = [
        Picture(title, alt, uri, uri, width, height)
        for name, (title, alt) in OF_SWEEP.items()
        for uri, width, height in _png(folder / "figures" / f"{name}.png")
    ]
    if found:
        return found
    by = board.ranked_by
    light, dark = (panels_by_key(board.rows, board.keys, by, theme=theme) for theme in ("light", "dark"))
    if light is None or dark is None:
        return []
    done = [row[by] for row in board.rows if row.get(by) is not None]
    what = "Test" if by == "mean_l2" else "Validation"
    span = f"from {five_digits(min(done))} to {five_digits(max(done))}"
    alt = f"{what} mean L2 of {len(done)} runs against {', '.join(board.keys)}; {span}."
    return [_picture("sweep", "Mean L2 by the varied keys", alt, {"light": light, "dark": dark})]


def _png(path: Path) -> list[tuple[str, int, int]]:
    """Return the picture as a data URI with its size, in a list that is empty where the file is not a PNG."""
    try:
        raw = read_bytes(path, MAX_PNG)
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
            width, height = image.size
    except (OSError, ValueError):
        return []
    return [(f"data:image/png;base64,{base64.b64encode(raw).decode()}", width, height)] if len(raw) < MAX_PNG else []


def _alt(name: str, evaluated: Evaluated) -> str:
    history, several = evaluated.checkpoint.history, evaluated.model.K > 1
    if name == "training":
        if not history:
            return "No epochs are recorded."
        train = [five_digits(row["train_mean_l2"]) for row in history if "train_mean_l2" in row]
        course = f"Mean L2 on the training samples went from {train[0]} to {train[-1]}; " if train else ""
        test, epoch = five_digits(evaluated.checkpoint.mean_l2), history[-1]["epoch"]
        return f"{course}after {epoch:.0f} epochs it is {test} on the test samples."
    if name == "reconstructions":
        low, middle, high = (five_digits(value) for value in np.quantile(evaluated.residual, [0, 0.5, 1]))
        return (
            "Rows of test samples: original, reconstruction and residual, for typical, best and worst samples. "
            f"Mean L2 of a sample: best {low}, median {middle}, worst {high}."
        )
    if name == "usage":
        use = np.sort(evaluated.latents.count.numpy())[::-1] / evaluated.latents.count.sum().item()
        return f"Bars: the most used component has {use[0]:.1%} of the samples, the least used {use[-1]:.1%}."
    if name == "atlas":
        rows = "One row for each component, most used first: its mean" if several else "The decoded mean of the codes"
        return f"{rows}, and walks along its principal axes."
    if name == "rate":
        low, high = (
            f"{five_digits(point.mean_squared_error)} at {point.bits:.1f} bits a sample"
            for point in (evaluated.rate_curve[-1], evaluated.rate_curve[0])
        )
        return f"A falling curve: the mean squared error of decoded samples is {low} and {high}."
    if name == "bits":
        return "A matrix of components against latents: the bits a sample that each latent takes."
    if name == "spectrum":
        lines, whose = ("Lines", "component") if several else ("A line", "code")
        return f"{lines} falling from left to right: variance along each principal axis of each {whose}."
    return "A matrix of classes against components: the share of each class that each component codes."


def _heading(checkpoints: Sequence[Evaluated]) -> str:
    tasks = list(dict.fromkeys(str(hide_folders(evaluated.task.name)) for evaluated in checkpoints))
    return tasks[0] if len(tasks) == 1 else " and ".join(tasks[:3])


def _asset(name: str) -> str:
    return resources.files("llgae_cli.report").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")
