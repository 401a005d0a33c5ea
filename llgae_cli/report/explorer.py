"""Data of a model for the page's explorer, packed so that the browser decodes the same values as Python.

mu and W are stored as 16-bit integers with one scale a row: an entry is off by at most max|row| / 65534, far below one
grey level in x_hat = mu_k + W_k b. Codes, means and the maps between b and standard deviations are float32. Of a deep
model the page has the decoder network, too (see `network`), and the codes of its samples, for it does not infer them.
"""

from typing import Any

import numpy as np
import torch

from llgae_cli.codec.codec import Codec
from llgae_cli.codec.density import TOTAL
from llgae_cli.codec.exact import SCALES
from llgae_cli.evaluation import Evaluated
from llgae_cli.factory import ALPHA
from llgae_cli.figures.cells import Looks
from llgae_cli.figures.table import TableView
from llgae_cli.figures.table.album import is_table
from llgae_cli.figures.table.contents import SHOWN, name_class
from llgae_cli.figures.table.drawing import one_line
from llgae_cli.models import LLGAE
from llgae_cli.report.network import count_bytes, pack_network
from llgae_cli.report.packing import encode_base64, pack_floats, quantise

IMAGES = 60
BEST = 4  # components offered for a sample: its own and the three next best
BUDGET = 6_000_000  # bytes of base64 for mu and W of all checkpoints on a page
NETWORK_BUDGET = 4_500_000  # the same for the networks of all checkpoints
MAX_STEPS = 1000


def pack_model(evaluated: Evaluated, budget: int, network_budget: int = NETWORK_BUDGET) -> dict[str, Any] | None:
    """Return the model for the page: its most used components that fit `budget` bytes, with its network.

    None when no component fits, for a network of more than `network_budget` bytes, and for a model that the browser
    cannot decode: it computes mu_k + W_k b + network(k, b).
    """
    model, parts = evaluated.model, evaluated.model.decoder_parts()
    if parts is None or (parts.network is not None and count_bytes(parts.network) > network_budget):
        return None
    codec = evaluated.codec
    F = 0 if codec is None else codec.model.decoder.E  # latents of the codec
    each = (
        (
            2 * model.D * (1 + (0 if parts.W is None else model.E))
            + 4 * (2 * model.E * model.E + model.E + 2 * F * F + 3 * F + 1)
        )
        * 4
        / 3
    )
    order = evaluated.by_use()[: int(budget // each)]
    if len(order) < (1 if model.as_llgae() is not None else model.K):
        return None
    looks = Looks(evaluated.task.shape, *evaluated.value_range)
    mu = np.zeros((len(order), model.D)) if parts.mu is None else parts.mu.detach().cpu().numpy()[order]
    W = np.zeros((0, 0, model.D))  # (Kc, E, D): a row a direction
    if parts.W is not None:
        W = parts.W.detach().cpu().numpy()[order].transpose(0, 2, 1)
    affine = model.as_llgae()
    B = evaluated.axes.B[order]
    count = evaluated.latents.count.numpy()
    return {
        "K": model.K,
        "E": model.E,
        "D": model.D,
        "shape": list(evaluated.task.shape),
        "image": looks.is_image,
        "low": looks.low,
        "high": looks.high,
        "centred": evaluated.centred,
        "alpha": ALPHA[evaluated.config.prior],
        "beta": evaluated.config.beta,
        "steps": min(evaluated.config.n_step, MAX_STEPS),
        "inference": evaluated.config.inference,
        "can_infer": affine is not None,  # whether the page can infer b
        "network": pack_network(parts, order),
        "components": [
            {
                "k": int(k),
                "use": float(count[k] / count.sum()),
                "level": float(evaluated.grey_levels[k]),
                "share": [round(float(share), 6) for share in evaluated.explained(k)],
            }
            for k in order
        ],
        "mu": quantise(mu),
        "W": quantise(W.reshape(-1, model.D)),
        "mean": pack_floats(evaluated.axes.mean[order].numpy()),
        "B": pack_floats(B.numpy()),
        "inverse": pack_floats(torch.linalg.pinv(B).numpy() if model.E else B.numpy()),
        "codec": None if codec is None or affine is None else pack_codec(codec, affine, order, evaluated.centred),
    }


def pack_codec(codec: Codec, model: LLGAE, order: np.ndarray, centred: bool) -> dict[str, Any] | None:
    """Return how the codec rounds the codes of the components `order`, for an estimate of their bits in the browser.

    With c = b, or c = (b, mean grey level) where samples are centred, the latents of the codec are

        z = U^T (mu + W c - mu_codec) = A c + a,    c = A^+ (z - a)

    where W has a last column of ones for a centred model. A (F, C) and A^+ (C, F) are packed for each component, with
    a, the scales on their logarithmic grid, the shapes s, and the bits of k. None for a codec of another number of
    components, or of several levels.
    """
    decoder = codec.model.decoder
    if len(decoder.levels) != 1 or decoder.places is not None or decoder.levels[0].K != model.K:
        return None
    level = decoder.levels[0]
    mu, W = (values.detach().cpu().double().numpy()[order] for values in (model.mu, model.W))
    if centred:
        W = np.concatenate([W, np.ones_like(W[:, :, :1] if model.E else mu[:, :, None])], 2)
    U = level.U[order].transpose(0, 2, 1)  # (Kc, F, D)
    A = U @ W
    weights = codec.model.weights[0].reshape(level.K, level.A).sum(1)[order]
    return {
        "step": codec.model.step.value,
        "F": level.E,
        "A": pack_floats(A),
        "back": pack_floats(np.linalg.pinv(A) if A.size else A.transpose(0, 2, 1)),
        "a": pack_floats((U @ (mu - level.mu[order])[:, :, None])[:, :, 0]),
        "per_octave": SCALES,
        "scale": level.scale[order].ravel().tolist(),
        "shape": level.shape[order].ravel().tolist(),
        "bits_k": pack_floats(-np.log2(weights / weights.dtype.type(TOTAL))),
    }


def pack_table(evaluated: Evaluated, view: TableView) -> dict[str, Any]:
    """Return names, scaling and order of the variables, with mean and std of each in its own units.

    The browser shows v = centre + scale u of the variables that come first in `order`, the most important ones.
    """
    scaling, D = evaluated.split_samples.scaling, evaluated.model.D
    order = view.rank_variables()[:SHOWN]

    def plain(values: np.ndarray) -> list[float]:
        return [float(value) for value in values[order]]

    return {
        "order": order.tolist(),
        "names": [one_line(view.names[d]) for d in order],
        "centre": plain(np.zeros(D) if scaling is None else scaling.centre),
        "scale": plain(np.ones(D) if scaling is None else scaling.scale),
        "mean": plain(view.mean),
        "std": plain(view.std),
    }


def choose_samples(evaluated: Evaluated, n: int = IMAGES) -> np.ndarray:
    """Return the rows of about n test samples: equally many of each class, from the least to the largest mean L2."""
    N = len(evaluated.residual)
    labels = evaluated.labels if evaluated.labels is not None else np.zeros(N, np.int64)
    present = np.unique(labels)[:n]
    rows: list[int] = []
    for label in present:
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(evaluated.residual[own], kind="stable")]
        places = np.linspace(0, len(own) - 1, min(len(own), max(1, n // len(present))) + 2)[1:-1]
        rows += own[np.unique(places.round().astype(int))].tolist()
    return np.array(rows, dtype=np.int64)


def pack_samples(evaluated: Evaluated, rows: np.ndarray) -> dict[str, Any]:
    """Return these test samples before centring (stored values, or scaled ones), with their means and class names."""
    index = torch.as_tensor(rows)
    means = evaluated.task.test.means(index)
    v = (evaluated.task.test.rows(index) + means[:, None]).numpy()  # as the model gets them: scaled, if they are
    classes = evaluated.task.classes
    names = []
    for row in rows:
        label = None if evaluated.labels is None else int(evaluated.labels[row])
        named = classes is not None and label is not None and label < len(classes)
        name = (classes[label] if named else f"class {label}") if label is not None else ""  # type: ignore[index]
        names.append(name_class(classes, label) if label is not None and is_table(evaluated) else name)
    eight_bit = evaluated.task.test.stored == "uint8" and not is_table(evaluated)
    return {
        "rows": rows.tolist(),
        "names": names,
        "type": "uint8" if eight_bit else "float32",
        "values": encode_base64(np.rint(v).astype(np.uint8)) if eight_bit else pack_floats(v),
        "means": pack_floats(means.numpy()),
    }


@torch.no_grad()
def pack_codes(evaluated: Evaluated, rows: np.ndarray, embedded: list[int]) -> list[list[dict[str, Any]]]:
    """Return for each sample its codes in the best components, its own first: index in `embedded`, b and mean L2.

    `embedded` are the components on the page. A sample whose own component is not among them gets the best that are.
    Of a model that is no LLGAE, where the page has all components, only the sample's own code.
    """
    model = evaluated.model.as_llgae()
    x = evaluated.task.test.rows(torch.as_tensor(rows))
    code = evaluated.model.encode(x)
    if model is None:
        mean_l2 = (x - evaluated.model.decode(code)).square().mean(1)
        return [
            [{"at": embedded.index(int(k)), "b": pack_floats(b.numpy()), "mean_l2": float(one)}]
            for k, b, one in zip(code.k, code.b, mean_l2, strict=True)
        ]
    P = model.maps()[0]
    b = torch.stack([model.encode_in(x, torch.full((len(x),), k), P) for k in embedded], 1)  # (n, Kc, E)
    for place, k in enumerate(embedded):
        b[code.k == k, place] = code.b[code.k == k]
    residual = torch.stack(
        [(x - model.mu[k] - b[:, place] @ model.W[k].T).square().mean(1) for place, k in enumerate(embedded)], 1
    )
    won = torch.tensor(embedded)[None] == code.k[:, None]
    order = torch.where(won, -1.0, residual).argsort(1)[:, :BEST]
    return [
        [{"at": int(j), "b": pack_floats(b[i, j].numpy()), "mean_l2": float(residual[i, j])} for j in order[i]]
        for i in range(len(rows))
    ]
