"""The page's table of numbers."""

from collections.abc import Sequence

import numpy as np

from llgae_cli.evaluation import Evaluated
from llgae_cli.figures.table import TableView
from llgae_cli.figures.table.album import is_table
from llgae_cli.figures.table.contents import name_class
from llgae_cli.formatting import five_digits, percent
from llgae_cli.report.words import choose_words

PARTS = {
    "k": "… of k",
    "shifts": "… of the shift",
    "latents": "… of the latents",
    "mean": "… of the sample's mean",
    "raw": "… of samples stored as they are",
    "framing": "Framing of a file of all samples",
}


def tabulate(
    checkpoints: Sequence[Evaluated], views: Sequence[TableView | None] = ()
) -> list[tuple[str, str, list[str]]]:
    """Return the rows of the table of numbers: name, unit, and one text a checkpoint; the classes' mean L2 last."""
    words = choose_words(checkpoints)
    e = [evaluated.metrics for evaluated in checkpoints]
    trained = [evaluated.checkpoint.train_mean_l2 for evaluated in checkpoints]
    used = [f"{len(one.usage) - one.empty} of {len(one.usage)}" if len(one.usage) > 1 else "—" for one in e]
    perplexity = [f"{one.perplexity:.2f}" if len(one.usage) > 1 else "—" for one in e]
    of_components = [("Components in use", "", used), ("Perplexity of use", "components", perplexity)]
    symbols = "k and further symbols" if any(evaluated.model.symbols for evaluated in checkpoints) else "k"
    table = [
        ("Mean L2, test", words.unit, [five_digits(one.mean_l2) for one in e]),
        ("Mean L2, train", words.unit, [five_digits(t) for t in trained]),
        ("Explained variance", "", [percent(one.explained_variance) for one in e]),
        *_tabulate_variables(views),
        *([] if any(views) else [("PSNR", "dB", [f"{one.psnr:.2f}" for one in e])]),
        *(of_components if any(len(one.usage) > 1 for one in e) else []),
        *(
            [(f"Entropy of {symbols}", "bit a sample", [f"{one.bits:.2f}" for one in e])]
            if any(one.bits for one in e)
            else []
        ),
        *_tabulate_rates(checkpoints),
        ("Epochs", "", [str(evaluated.checkpoint.epoch) for evaluated in checkpoints]),
        ("Training time", "s", [f"{evaluated.checkpoint.seconds:.1f}" for evaluated in checkpoints]),
        (words.rows.capitalize(), "", [f"{one.n}" for one in e]),
    ]
    for label in sorted({label for one in e for label in one.per_class or {}})[:40]:
        values = [(one.per_class or {}).get(label) for one in e]
        table.append((f"Mean L2, {_class(checkpoints, label)}", "", [five_digits(v) for v in values]))
    return table


def _tabulate_variables(views: Sequence[TableView | None]) -> list[tuple[str, str, list[str]]]:
    """Return the rows about R^2 of the variables of tables."""
    if not any(views):
        return []
    r2 = [np.zeros(0) if view is None else view.r2[np.isfinite(view.r2)] for view in views]
    return [
        ("R², median of the variables", "", [f"{np.median(own):.4f}" if len(own) else "—" for own in r2]),
        ("R², worst variable", "", [f"{own.min():.4f}" if len(own) else "—" for own in r2]),
    ]


def _tabulate_rates(checkpoints: Sequence[Evaluated]) -> list[tuple[str, str, list[str]]]:
    """Return the rows about rates; those about parts of the bits only where a checkpoint has a codec."""
    unit = choose_words(checkpoints).unit
    rates, splits = [one.rate for one in checkpoints], [one.bit_split for one in checkpoints]
    bits = [f"{rate.bits_coded:.2f}{' (estimate)' if rate.bits_estimated else ''}" for rate in rates]
    table = [
        ("Mean L2, as coded", unit, [five_digits(rate.mean_l2_coded) for rate in rates]),
        ("Bits of a code", "bit a sample", bits),
    ]
    for part, name in PARTS.items():
        values = [None if split is None else split.parts()[part] for split in splits]
        if any(value is not None and value > 0.005 for value in values):
            table.append((name, "bit a sample", ["—" if value is None else f"{value:.2f}" for value in values]))
    return table


def _class(checkpoints: Sequence[Evaluated], label: int) -> str:
    for evaluated in checkpoints:
        if evaluated.task.classes and label < len(evaluated.task.classes):
            named = evaluated.task.classes[label]
            return name_class(evaluated.task.classes, label) if is_table(evaluated) else named
    return f"class {label}"
