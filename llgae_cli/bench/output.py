"""The results of benchmarks as a file and as a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from llgae_cli.bench.rate import find_kind, trace_curves
from llgae_cli.figures import style
from llgae_cli.figures.rate_distortion import Curve, rate_distortion
from llgae_cli.figures.units import error_unit_of_tasks
from llgae_cli.storage.atomic import write_atomically

GROWTHS = {"growth over K": "K, components", "growth over E": "E, latent dimensions", "growth over N": "N, samples"}


def save(document: dict[str, Any], folder: Path) -> None:
    """Write bench.json into `folder`, bench.png where growth was measured, and rate.png where rates were."""
    with write_atomically(folder / "bench.json") as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    _draw_growth(document, folder / "bench.png")
    _draw_rate(document, folder / "rate.png")


def _draw_growth(document: dict[str, Any], path: Path) -> None:
    measured = [row for row in document["rows"] if row["at"] is not None]
    curves = {name: [row for row in measured if row["bench"] == name] for name in GROWTHS}
    if not all(curves.values()):
        return
    figure = Figure(figsize=(9, 3), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        at, took = [row["at"] for row in rows], [row["value"] for row in rows]
        axes.plot(at, took, "o-", color="#0072b2", markersize=4)
        axes.set(xlabel=GROWTHS[name], ylabel="seconds an iteration")
        if name == "growth over N":
            axes.loglog()
        else:
            axes.set_ylim(0, None)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"One training iteration, {document['machine']}", fontsize=10)
    with write_atomically(path, durable=False) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def _draw_rate(document: dict[str, Any], path: Path) -> None:
    points = [
        (row["coding"]["method"], row["at"], row["value"]) for row in document["rows"] if row["coding"] is not None
    ]
    curves = [Curve(name, find_kind(name), *np.transpose(curve)) for name, curve in trace_curves(points).items()]
    if curves:
        unit = error_unit_of_tasks([document["task"]])
        style.save(rate_distortion(curves, data=f"Test images of {document['task']}", unit=unit), path)
