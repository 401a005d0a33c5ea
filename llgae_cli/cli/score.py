"""`llgae score`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from llgae_cli.cli.console import print_json, print_lines, print_table
from llgae_cli.cli.encode import Part
from llgae_cli.cli.options import CheckpointFile, DataDir, Json
from llgae_cli.cli.over_shards import Address, EngineOption, Jobs, Resume, Sharing, names_folder, run_over_shards
from llgae_cli.errors import InputError, nearest, printable
from llgae_cli.formatting import five_digits, percent

if TYPE_CHECKING:
    import numpy as np

    from llgae_cli.tasks import Samples

MOST_NOVEL = 5  # rows that the summary names


def score(
    checkpoint: CheckpointFile,
    task: Annotated[
        str | None, typer.Option(help="Score this task instead of the checkpoint's own, for instance npy:PATH.")
    ] = None,
    split: Annotated[Part | None, typer.Option(help="Split to score. Default: test; all for --task npy:FILE.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Scores of every row (.csv or .npz), or a folder: an .npz for each shard.",
            metavar="FILE|DIR",
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            "--score", help="nll: negative log-likelihood, spe: squared residual, t2: distance within the component."
        ),
    ] = "nll",
    quantile: Annotated[
        float, typer.Option(help="A row is novel above this quantile of the training rows: 0.9, 0.95, 0.99 or 0.999.")
    ] = 0.99,
    novel: Annotated[
        str | None, typer.Option(help="Labels whose rows are novel, such as 3,5: prints AUROC and average precision.")
    ] = None,
    normal: Annotated[
        str | None, typer.Option(help="Labels whose rows are not novel; those of all other labels are.")
    ] = None,
    data_dir: DataDir = None,
    jobs: Jobs = None,
    resume: Resume = False,
    engine: EngineOption = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Run `llgae score`; `app` has its help."""
    from llgae_cli.evaluation.novelty import QUANTILES, SCORES, Score

    if by not in get_args(Score):
        raise InputError(f"--score {printable(by)}: known are {', '.join(SCORES)}{nearest(by, SCORES)}")
    sharing = Sharing(jobs, resume, engine, address)
    if names_folder(output, sharing):
        assert output is not None
        if novel is not None or normal is not None:
            raise InputError("--novel and --normal are for one file, not for shards")
        run_over_shards(
            "score", checkpoint, task, output, {"score": by, "quantile": quantile},
            split=split and split.value, data_dir=data_dir,
            sharing=sharing, json=json,
        )  # fmt: skip
        return
    if output is not None and output.suffix not in (".csv", ".npz"):
        raise InputError(f"-o {printable(output, 200)}: a .csv file, an .npz file or a folder is expected")
    if novel is not None and normal is not None:
        raise InputError("give --novel or --normal, not both")
    named = parse_labels("--novel" if normal is None else "--normal", novel if normal is None else normal)
    import numpy as np

    from llgae_cli.batch.scores import collect_scores, write_scores
    from llgae_cli.evaluation.novelty import load_novelty
    from llgae_cli.factory import describe_loading
    from llgae_cli.tasks import load_samples

    novelty, config, loaded = load_novelty(checkpoint, data_dir)
    limit = novelty.threshold(by, quantile)  # type: ignore[arg-type]
    name = task or config.task
    how = describe_loading(config, loaded, other=task is not None)
    samples = load_samples(name, split and split.value, data_dir or config.data_dir, **how)
    if samples.D != novelty.model.D:
        raise InputError(f"{printable(name)}: samples of {samples.D} values; the model's have {novelty.model.D}")
    is_novel = find_novel(samples, named, normal is not None) if named else None
    columns = collect_scores(novelty, samples)
    columns["above"] = columns[by] > limit
    if output is not None:
        write_scores(columns, output)

    values = columns[by]
    limits = [(q, novelty.threshold(by, q)) for q in QUANTILES]  # type: ignore[arg-type]
    above = [(q, limit, int((values > limit).sum())) for q, limit in limits]
    worst = np.argsort(-values, kind="stable")[:MOST_NOVEL]
    document: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "task": name,
        "n": samples.N,
        "score": by,
        "median": float(np.median(values)),
        "quantiles": [{"quantile": q, "threshold": limit, "above": count} for q, limit, count in above],
        "most_novel": [{"row": int(row), by: float(values[row])} for row in worst],
        "output": None if output is None else str(output),
    }
    if is_novel is not None:
        document |= measure(values, is_novel)
    if json:
        print_json(document)
        return
    print_lines(
        f"task        {name}: {samples.N} rows",
        f"score       {by}, median {five_digits(document['median'])}",
        "most novel  " + ", ".join(f"row {row} ({five_digits(float(values[row]))})" for row in worst),
    )
    if is_novel is not None:
        print_lines(
            f"novel       {document['novel']} rows by their labels",
            f"AUROC       {document['auroc']:.4f}",
            f"AP          {document['average_precision']:.4f} (average precision)",
        )
    if output is not None:
        print_lines(f"scores      {output}, column above: {by} > {five_digits(limit)}")
    print_table(
        ["quantile of training rows", "threshold", "rows above", "share"],
        [[f"{q:g}", five_digits(limit), str(count), percent(count / samples.N)] for q, limit, count in above],
    )


def parse_labels(option: str, text: str | None) -> list[int]:
    """Return the labels in a text such as `3,5`; none for None. Raises InputError for anything but integers."""
    if text is None:
        return []
    try:
        return [int(label) for label in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {printable(text)}: labels such as 3 or 3,5 are expected") from None


def find_novel(samples: "Samples", labels: list[int], normal: bool) -> "np.ndarray":
    """Return for each sample whether its label is one of those given, or with `normal` none of them, (N,) bool.

    Raises InputError where the samples have no labels, a label does not occur, or no row or every row is novel.
    """
    import numpy as np

    option = "--normal" if normal else "--novel"
    if samples.labels is None:
        raise InputError(f"{option}: {printable(samples.origin)} has no labels")
    own = samples.labels.cpu().numpy()
    present = np.unique(own)
    for label in labels:
        if label not in present:
            known = ", ".join(map(str, present[:20])) + (", ..." if len(present) > 20 else "")
            raise InputError(f"{option} {label}: no row has this label; those of the data are {known}")
    found = np.isin(own, labels) != normal
    if found.all() or not found.any():
        raise InputError(f"{option}: {'every' if found.all() else 'no'} row is novel; AUROC needs both kinds")
    return found


def measure(values: "np.ndarray", novel: "np.ndarray") -> dict[str, Any]:
    """Return the number of novel rows, AUROC and average precision, under the names of --json."""
    import torch

    from llgae_cli.evaluation.novelty import measure_detection

    auroc, precision = measure_detection(torch.from_numpy(values), torch.from_numpy(novel))
    return {"novel": int(novel.sum()), "auroc": auroc, "average_precision": precision}
