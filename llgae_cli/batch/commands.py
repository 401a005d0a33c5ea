"""What each whole-data command does with a shard.

A command is begun once in each process, which loads the model, and gives a function from a shard to its figures. It
writes the shard's result atomically. What a row is coded to depends on the model, the job and the row alone: what needs
more than one shard, such as a quantiser step for a rate, is prepared once, before any shard is coded.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from llgae_cli.batch.compression import verify_file, write_rows
from llgae_cli.batch.decompression import Lost, check_codec, decode_rows
from llgae_cli.batch.scores import collect_scores, write_scores
from llgae_cli.batch.shards import Shard
from llgae_cli.codec.codec import Codec
from llgae_cli.codec.settings import Settings
from llgae_cli.config import Config, parse_config
from llgae_cli.errors import InputError, LlgaeError
from llgae_cli.evaluation.distortion import Bound
from llgae_cli.evaluation.encoding import write_codes
from llgae_cli.evaluation.metrics import measure
from llgae_cli.evaluation.novelty import load_novelty
from llgae_cli.factory import describe_loading, restore
from llgae_cli.storage import Checkpoint, load
from llgae_cli.storage.atomic import write_atomically, write_text
from llgae_cli.storage.compressed_file import CompressedFile, leave_room
from llgae_cli.storage.compressed_header import choose_block_rows
from llgae_cli.tasks import Samples, load_samples, load_whole
from llgae_cli.tasks.rows import SAMPLE_BYTES, SAMPLE_ROWS, Rows

SAMPLED = 16  # shards from which settings are chosen
TARGETS = ("bits", "step", "max_l2", "max_abs", "lossless")

Figures = dict[str, float | None]  # "rows", and what the command measured
Work = Callable[[Shard], Figures]


@dataclass(frozen=True)
class Job:
    """A command over shards, in plain values: what its processes are told.

    command     one of COMMANDS
    checkpoint  absolute path; None where compressed files hold the model
    data_dir    folder for what is downloaded or converted; None for the config's
    working     folder in which relative paths of the config start
    options     the command's options by name
    prepared    what the command's `prepare` returned
    """

    command: str
    checkpoint: str | None
    data_dir: str | None
    working: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prepared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_file(self) -> Path:
        """The checkpoint, of a command that needs one."""
        assert self.checkpoint is not None
        return Path(self.checkpoint)


@dataclass(frozen=True)
class Command:
    """A whole-data command.

    suffix   of the results
    begin    loads what the command needs; raises InputError
    prepare  returns what all shards have in common, from a job without it and the shards
    """

    suffix: str
    begin: Callable[[Job], Work]
    prepare: Callable[[Job, Sequence[Shard]], dict[str, Any]] = lambda job, shards: {}


def begin_encode(job: Job) -> Work:
    """Return what writes the codes of a shard."""
    model, stored, config = restore(job.model_file)
    read = _make_reader(job, stored, config, model.D)

    def encode(shard: Shard) -> Figures:
        samples = read(shard)
        return {"rows": samples.N, "mean_l2": write_codes(model, samples, Path(shard.output))}

    return encode


def begin_eval(job: Job) -> Work:
    """Return what writes the metrics of a shard as JSON, with the rows of each component."""
    model, stored, config = restore(job.model_file)
    read = _make_reader(job, stored, config, model.D)

    def evaluate(shard: Shard) -> Figures:
        samples = read(shard)
        measured = measure(model, samples, peak=float(stored.data.get("peak", 255.0)))
        metrics = measured.metrics
        if not math.isfinite(metrics.mean_l2):
            raise InputError(f"{samples.origin}: mean L2 is {metrics.mean_l2}")
        count = measured.k.bincount(minlength=model.K)
        named = {name: value for name, value in metrics.plain().items() if name != "usage"}
        finite = {
            name: value if not isinstance(value, float) or math.isfinite(value) else None
            for name, value in named.items()
        }
        write_text(Path(shard.output), json.dumps({**finite, "count": count.tolist()}) + "\n")
        return {"rows": samples.N, "mean_l2": metrics.mean_l2}

    return evaluate


def begin_score(job: Job) -> Work:
    """Return what writes the scores of a shard; rows above the threshold are counted."""
    novelty, config, stored = load_novelty(job.model_file, None if job.data_dir is None else Path(job.data_dir))
    read, by = _make_reader(job, stored, config, novelty.model.D), job.options["score"]
    limit = novelty.threshold(by, job.options["quantile"])

    def score(shard: Shard) -> Figures:
        samples = read(shard)
        columns = collect_scores(novelty, samples)
        columns["above"] = columns[by] > limit
        write_scores(columns, Path(shard.output))
        return {"rows": samples.N, "above": int(columns["above"].sum()), "largest": float(columns[by].max())}

    return score


def begin_compress(job: Job) -> Work:
    """Return what compresses a shard with the prepared settings."""
    codec, read = _open_codec(job)
    settings = Settings.unpack(bytes.fromhex(job.prepared["settings"]), codec.D) if job.prepared else None
    model = codec.pack() if job.options.get("embed_model") else b""
    max_abs = job.options.get("max_abs")
    bound = Bound(
        job.options.get("max_l2"),
        None if max_abs is None else np.array(max_abs),
        bool(job.options.get("lossless")),
        codec.unit,
    )

    def compress(shard: Shard) -> Figures:
        rows = read(shard)
        assert settings is not None
        if job.options.get("lossless") and np.dtype(rows.dtype).kind == "f":
            raise InputError(f"{rows.origin}: lossless coding is for integers; these rows hold {rows.dtype}")
        with write_atomically(Path(shard.output)) as temporary:
            with open(temporary, "wb") as file:
                error, _ = write_rows(file, codec, rows, settings, model, bound)
            if job.options.get("verify"):
                verify_file(temporary, codec, rows, settings, error)
        return {
            "rows": rows.n,
            "mean_squared_error": error.mean,
            "largest_row_error": error.largest_row,
            "largest_value_error": error.largest_value,
        }

    return compress


def prepare_compress(job: Job, shards: Sequence[Shard]) -> dict[str, Any]:
    """Return the codec's settings for all shards, chosen from rows of some of them: more rows of larger ones.

    A shard that cannot be read is left out here, and fails later, alone. Raises InputError where none can be read, and
    as `Codec.choose_settings`.
    """
    codec, read = _open_codec(job)
    chosen = choose_shards(shards)
    parts: list[np.ndarray] = []
    numbers: list[int] = []  # of the rows of these shards
    refused: LlgaeError | None = None
    for shard, share in chosen:
        try:
            rows = read(shard)
        except LlgaeError as error:
            refused = refused or error
            continue
        part = rows.sample()
        if not parts or part.dtype == parts[0].dtype:
            most = max(1, round(min(SAMPLE_ROWS, SAMPLE_BYTES // rows.row_bytes) * share))
            parts.append(part[:: -(-len(part) // most)].copy())
            numbers.append(rows.n)
    if not parts:
        assert refused is not None
        raise InputError(f"none of {len(chosen)} shards can be read; the first: {refused}")
    target = {name: job.options[name] for name in TARGETS if name in job.options}
    if "max_abs" in target:
        target["max_abs"] = np.array(target["max_abs"])
    if "bits" in target:
        rows_a_shard, block_rows = sum(numbers) // len(numbers), choose_block_rows(parts[0].nbytes // len(parts[0]))
        target["bits"] = leave_room(target["bits"], rows_a_shard, block_rows)
    return {"settings": codec.choose_settings(np.concatenate(parts), **target).pack().hex()}


def choose_shards(shards: Sequence[Shard]) -> list[tuple[Shard, float]]:
    """Return up to SAMPLED shards, and the share of the rows to take of each: that of its bytes among all files'."""
    sizes = np.array([shard.measure_size() for shard in shards], np.float64)
    if len(shards) <= SAMPLED:
        return list(zip(shards, (sizes / sizes.sum()).tolist(), strict=True))
    ends = np.cumsum(sizes)
    drawn = np.searchsorted(ends, (np.arange(SAMPLED) + 0.5) / SAMPLED * ends[-1])
    return [(shards[at], int(count) / SAMPLED) for at, count in zip(*np.unique(drawn, return_counts=True), strict=True)]


def begin_decompress(job: Job) -> Work:
    """Return what decompresses a shard, a compressed file."""
    own = None if job.checkpoint is None else Codec.load(job.checkpoint)
    unpack = lru_cache(1)(Codec.unpack)  # shards of one folder hold the same model

    def decompress(shard: Shard) -> Figures:
        path = Path(shard.source)
        with closing(CompressedFile(path)) as file:
            codec = own or unpack(file.read_model())
            check_codec(codec, file.header, path, "the checkpoint has" if own else "the model in it has")
            lost = Lost(path)
            with write_atomically(Path(shard.output)) as temporary, open(temporary, "wb") as out:
                decode_rows(out, file, codec, range(file.header.n), lost, path)
            return {"rows": file.header.n}

    return decompress


COMMANDS: dict[str, Command] = {
    "encode": Command(".npz", begin_encode),
    "compress": Command(".llgae", begin_compress, prepare_compress),
    "decompress": Command(".npy", begin_decompress),
    "score": Command(".npz", begin_score),
    "eval": Command(".json", begin_eval),
}


def _make_reader(job: Job, stored: Checkpoint, config: Config, D: int) -> Callable[[Shard], Samples]:
    """Return what reads the samples of a shard as the model's were; InputError for samples without its D values."""
    how, data_dir = describe_loading(config, stored, other=True), _data_dir(job, config.data_dir)

    def read(shard: Shard) -> Samples:
        samples = load_samples(shard.task, "all", data_dir, **how)
        if samples.D != D:
            raise InputError(f"{samples.origin}: samples of {samples.D} values; the model's have {D}")
        return samples

    return read


def _open_codec(job: Job) -> tuple[Codec, Callable[[Shard], Rows]]:
    """Return the codec of a job's checkpoint, and what reads the rows of a shard."""
    codec = Codec.load(job.model_file)
    stored = load(job.model_file)
    config = parse_config(stored.config)
    options = describe_loading(config, stored, other=True)["options"]
    data_dir = _data_dir(job, config.data_dir)

    def read(shard: Shard) -> Rows:
        whole, shape = load_whole(shard.task, data_dir, options)
        if math.prod(shape) != codec.D:
            raise InputError(f"{whole.origin}: rows of {math.prod(shape)} values; the model's have {codec.D}")
        return Rows([whole], shape)

    return codec, read


def _data_dir(job: Job, default: Path) -> Path:
    return default if job.data_dir is None else Path(job.data_dir)
