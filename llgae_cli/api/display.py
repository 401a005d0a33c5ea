"""What a notebook shows of a trained model: its numbers and a small picture, for light and dark pages."""

import base64
import html
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from llgae_cli.evaluation.latents import read_latents
from llgae_cli.figures.cells import Looks
from llgae_cli.figures.components import usage
from llgae_cli.figures.contact_sheet import add_level, contact_sheet
from llgae_cli.figures.style import Theme, encode
from llgae_cli.formatting import five_digits

if TYPE_CHECKING:
    from llgae_cli.api.fitted_model import FittedModel

SHOWN = 12  # components whose means are drawn


def draw_html(model: "FittedModel") -> str:
    """Return a table of the model's numbers, beside the means of its most used components, for rows their use.

    Text has the page's colour. Of the picture there is one for light and one for dark pages, where the browser says
    which it is.
    """
    config, stored = model.config, model.metrics
    epochs = f"{stored['epochs']} epoch{'' if stored['epochs'] == 1 else 's'}"
    sizes = [("K", model.module.K), ("E", model.module.E), ("D", model.module.D)]
    unit = " (scaled)" if model.checkpoint.data.get("scaling") else ""
    rows = [
        ("model", f"{config.model}: " + ", ".join(f"{name} = {size}" for name, size in sizes)),
        ("task", config.task),
        (f"mean L2{unit}", f"{five_digits(stored['mean_l2'])} test, {five_digits(stored['train_mean_l2'])} train"),
        ("training", f"{epochs}, {stored['seconds']:.1f} s"),
        ("checkpoint", model.path.name),
    ]
    cells = "".join(
        f'<tr><th scope="row" style="text-align:left;font-weight:600;white-space:nowrap">{html.escape(name)}</th>'
        f'<td style="text-align:left;overflow-wrap:anywhere">{html.escape(text)}</td></tr>'
        for name, text in rows
    )
    table = f'<table style="color:inherit;background:none;max-width:40em;margin:0">{cells}</table>'
    return f'<div style="display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start">{table}{_picture(model)}</div>'


def _picture(model: "FittedModel") -> str:
    light, dark = (_draw(model, theme) for theme in ("light", "dark"))
    if light is None or dark is None:
        return ""
    is_image = len(model.shape) > 1
    alt = "Means of the most used components" if is_image else "Use of the components by the training samples"
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_inline(dark)}">'
        f'<img alt="{alt}" title="{alt}" style="max-width:min(100%,32em)" src="{_inline(light)}"></picture>'
    )


@torch.no_grad()
def _draw(model: "FittedModel", theme: Theme) -> Figure | None:
    """Return the means of the most used components as images; of rows the use of components; None where unknown."""
    latents = read_latents(model.checkpoint.extras, model.module, model.path)
    if latents is None:
        return None
    if len(model.shape) == 1:
        count = latents.count.numpy()
        return usage(count, theme=theme) if len(count) > 1 else None
    order = torch.argsort(latents.count, descending=True, stable=True)[:SHOWN]
    centres = latents.centres()
    code = type(centres)(centres.k[order], centres.b[order], None if centres.s is None else centres.s[order])
    x_hat = model.module.decode(code.to(model.module.device)).cpu().numpy()
    values = add_level(x_hat, str(model.checkpoint.data.get("centring", "sample")), None)
    peak = float(model.checkpoint.data.get("peak", 255.0))
    low, high = (0.0, peak) if peak in (255.0, 1.0) else (float(np.min(values)), float(np.max(values)))
    return contact_sheet(values, Looks(model.shape, low, high), theme=theme)


def _inline(figure: Figure) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode(figure, 'png')).decode()}"
