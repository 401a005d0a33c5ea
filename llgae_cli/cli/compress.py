"""`llgae compress`."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from llgae_cli.cli.binary_streams import STANDARD, RowCounter, check_output, open_output, print_summary
from llgae_cli.cli.console import print_json
from llgae_cli.cli.encode import Part
from llgae_cli.cli.options import CheckpointFile, DataDir, Json
from llgae_cli.errors import InputError, RunError, printable, show_path
from llgae_cli.formatting import five_digits

if TYPE_CHECKING:
    import numpy as np

    from llgae_cli.codec.codec import Codec
    from llgae_cli.codec.settings import Settings
    from llgae_cli.storage.compressed_file import Sizes
    from llgae_cli.tasks import Samples

BLOCK_ROWS = 256
SAMPLE_ROWS, SAMPLE_BYTES = 16_384, 1 << 28  # most rows that settings are chosen on
CHUNK_BLOCKS, CHUNK_BYTES = 16, 1 << 25  # most blocks that are coded at a time
HEADER_BYTES = 120  # of header and trailer, about
PICK = 256  # rows of the sample read at a time: rows near each other are read with what lies between


def compress(
    checkpoint: CheckpointFile,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write (.llgae); - for standard output.", metavar="FILE")
    ],
    task: Annotated[
        str | None, typer.Option(help="Compress this task instead of the checkpoint's own, for instance npy:PATH.")
    ] = None,
    split: Annotated[
        Part | None,
        typer.Option(help="Split to compress; all: train, then test. Default: test; all for --task npy:FILE."),
    ] = None,
    data_dir: DataDir = None,
    bits: Annotated[
        float | None, typer.Option(help="Bits a row: choose the step for which these rows take so many.")
    ] = None,
    step: Annotated[float | None, typer.Option(help="Step of the quantiser.")] = None,
    max_l2: Annotated[
        float | None, typer.Option("--max-l2", help="Bound on every row's squared error, the mean over its values.")
    ] = None,
    max_abs: Annotated[float | None, typer.Option("--max-abs", help="Bound on every value's absolute error.")] = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Keep every value as it is.")] = False,
    embed_model: Annotated[
        bool,
        typer.Option("--embed-model", help="Put the model into the file, so that it decodes without a checkpoint."),
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Decode what was written and compare it, before the file gets its name.")
    ] = False,
    json: Json = False,
) -> None:
    """Run `llgae compress`; `app` has its help."""
    target = choose_target(bits, step, max_l2, max_abs, lossless)
    check_output(output, ".llgae", json)
    if verify and output == STANDARD:
        raise InputError("--verify: what went to standard output cannot be read back: write to a file")
    from llgae_cli.codec.codec import Codec

    codec = Codec.load(checkpoint)
    rows = load_rows(checkpoint, task, split, data_dir)
    if math.prod(rows.shape) != codec.D:
        raise InputError(f"{rows.origin}: rows of {math.prod(rows.shape)} values; the model's have {codec.D}")
    if bits is not None:
        target["bits"] = leave_room(bits, rows)
    settings = codec.choose_settings(rows.sample(), **target)
    model = codec.pack() if embed_model else b""
    with open_output(output) as file:
        bound = Bound(max_l2, max_abs, lossless)
        error, sizes = write_rows(file, codec, rows, settings, model, bound)
        if verify:
            file.flush()
            verify_file(Path(file.name), codec, rows, settings, error)
    bits_a_row = 8 * sizes.total / rows.n
    if json:
        print_json(
            {
                "file": str(output),
                "n": rows.n,
                "shape": list(rows.shape),
                "dtype": rows.dtype,
                "bytes": sizes.total,
                "bits_per_row": bits_a_row,
                "mean_squared_error": error.mean,
                "largest_row_error": error.largest_row,
                "largest_value_error": error.largest_value,
                "sizes": {"header": sizes.header, "model": sizes.model, "index": sizes.index, "blocks": sizes.blocks},
                "model_bytes": codec.size,
                "identity": codec.identity.hex(),
                "verified": verify,
            }
        )
        return
    embedded = f", {sizes.model} of them in the file" if sizes.model else ", not in the file"
    print_summary(
        output,
        f"file     {output}{', verified' if verify else ''}",
        f"rows     {rows.n}, each {' x '.join(map(str, rows.shape))} {rows.dtype}",
        f"size     {sizes.total} bytes, {bits_a_row:.2f} bits a row",
        f"error    mean squared {five_digits(error.mean)}, largest of a row {five_digits(error.largest_row)}, "
        f"largest of a value {five_digits(error.largest_value)}",
        f"bytes    header {sizes.header}, model {sizes.model}, index and checks {sizes.index}, blocks {sizes.blocks}",
        f"model    {codec.size} bytes{embedded}, identity {codec.identity.hex()}",
    )


def choose_target(
    bits: float | None, step: float | None, max_l2: float | None, max_abs: float | None, lossless: bool
) -> dict[str, float | bool]:
    """Return the one option that says how well to code. Raises InputError for none, several, or a wrong number."""
    numbers = {"bits": bits, "step": step, "max_l2": max_l2, "max_abs": max_abs}
    given: dict[str, float | bool] = {key: value for key, value in numbers.items() if value is not None}
    for key, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"--{key.replace('_', '-')} {value:g}: a positive number is expected")
    if lossless:
        given["lossless"] = True
    if len(given) != 1:
        raise InputError("give one of --bits, --step, --max-l2, --max-abs and --lossless")
    return given


@dataclass(frozen=True)
class Rows:
    """The rows to compress, from one split or two: N rows of a shape, in the type they are stored in."""

    parts: "list[Samples]"
    shape: tuple[int, ...]

    @property
    def n(self) -> int:
        """Return the number of rows."""
        return sum(part.N for part in self.parts)

    @property
    def dtype(self) -> str:
        """Return the name of the stored type."""
        return self.parts[0].stored

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        return self.parts[0].D * self.parts[0].itemsize

    @property
    def origin(self) -> str:
        """Return where the rows come from, for messages."""
        return self.parts[0].origin

    def read(self, at: range) -> "np.ndarray":
        """Return the rows `at` as (len(at), D), in the stored type."""
        import numpy as np

        found, begin = [], 0
        for part in self.parts:
            first = at.start + max(0, -(-(begin - at.start) // at.step)) * at.step  # the first of them in this part
            here = slice(first - begin, max(first, min(at.stop, begin + part.N)) - begin, at.step)
            if here.start < here.stop:
                found.append(part.stored_rows(here).numpy().view(np.dtype(self.dtype)))
            begin += part.N
        return np.concatenate(found) if len(found) != 1 else found[0]

    def sample(self) -> "np.ndarray":
        """Return the rows on which settings are chosen: all of them, or every n-th where they are many."""
        import numpy as np

        most = max(1, min(SAMPLE_ROWS, SAMPLE_BYTES // self.row_bytes))
        at = range(0, self.n, -(-self.n // most))
        return np.concatenate([self.read(at[start : start + PICK]) for start in range(0, len(at), PICK)])

    def chunks(self, block_rows: int) -> "Iterator[np.ndarray]":
        """Yield all rows in order, some blocks at a time."""
        blocks = max(1, min(CHUNK_BLOCKS, CHUNK_BYTES // (block_rows * self.row_bytes)))
        for start in range(0, self.n, blocks * block_rows):
            yield self.read(range(start, min(self.n, start + blocks * block_rows)))


def load_rows(checkpoint: Path, task: str | None, split: Part | None, data_dir: Path | None) -> Rows:
    """Load the rows of a split, or of both, of a task or the checkpoint's own; without a split as `load_samples`."""
    from llgae_cli.config import parse_config
    from llgae_cli.storage import load
    from llgae_cli.tasks import load_samples, load_task
    from llgae_cli.tasks.npy_file import NpyFile

    config = parse_config(load(checkpoint).config)
    name, folder = task or config.task, data_dir or config.data_dir
    path = Path(name.removeprefix("npy:")).expanduser()
    if name.startswith("npy:") and not path.is_dir() and split in (None, Part.all):
        whole = load_samples(name, "all", folder, "none", config.seed)
        return Rows([whole], NpyFile(path).shape[1:])
    loaded = load_task(name, folder, "none", config.seed)
    parts = {Part.train: [loaded.train], Part.test: [loaded.test], Part.all: [loaded.train, loaded.test]}
    rows = Rows(parts[split or Part.test], loaded.shape)
    if len({part.stored for part in rows.parts}) > 1:
        raise InputError(f"--split all: {rows.origin}: the train and the test rows are stored in different types")
    return rows


def leave_room(bits: float, rows: Rows) -> float:
    """Return the bits a row that blocks may take, so that the file, without an embedded model, takes `bits` a row.

    Raises InputError where header, index and checks alone take more.
    """
    block_rows = count_block_rows(rows)
    lengths = 2 if bits * block_rows < 8 * (1 << 14) else 3  # bytes of the length of a block
    around = (HEADER_BYTES + -(-rows.n // block_rows) * (5 + 2 * lengths)) * 8 / rows.n
    if bits <= around:
        raise InputError(f"--bits {bits:g}: the header, the index and the checks alone take {around:.2f} bits a row")
    return bits - around


def count_block_rows(rows: Rows) -> int:
    """Return the number of rows in a block: 256, or what fits into the largest block."""
    from llgae_cli.storage.compressed_header import MAX_BLOCK_BYTES

    return max(1, min(BLOCK_ROWS, MAX_BLOCK_BYTES // rows.row_bytes))


@dataclass(frozen=True)
class Bound:
    """The error that was promised for every row, or none."""

    max_l2: float | None
    max_abs: float | None
    lossless: bool

    def broken(self, x: "np.ndarray", x_hat: "np.ndarray", difference: "np.ndarray") -> "np.ndarray":
        """Return for each row of x (n, D) whether it breaks the bound; `difference` is |x - x_hat| in float64."""
        import numpy as np

        broken = np.zeros(len(x), bool)
        if self.max_l2 is not None:
            broken |= ~(np.square(difference).mean(1) <= self.max_l2)  # also where it is NaN
        if self.max_abs is not None:
            broken |= ~(difference.max(1) <= self.max_abs)
        if self.lossless:  # the same bytes: -0.0 is not 0.0
            broken |= (np.ascontiguousarray(x).view(np.uint8) != np.ascontiguousarray(x_hat).view(np.uint8)).any(1)
        return broken


@dataclass
class Distortion:
    """Errors of decoded rows, in float64: total squared, largest of a row (mean over its values), largest of a value.

    `add` raises RunError for a row that breaks the bound, so that no such file gets its name.
    """

    bound: Bound
    n: int = 0
    values: int = 0
    total: float = 0.0
    largest_row: float = 0.0
    largest_value: float = 0.0
    digest: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16))

    @property
    def mean(self) -> float:
        """Return the mean over all values of the squared error."""
        return self.total / self.values if self.values else 0.0

    def add(self, x: "np.ndarray", x_hat: "np.ndarray") -> None:
        """Count rows (n, D) and what they decode to."""
        import numpy as np

        if (x_hat.shape, x_hat.dtype) != (x.shape, x.dtype):
            raise RunError(f"rows {self.n}..{self.n + len(x) - 1} decode to another shape or type: please report this")
        difference = np.abs(x.astype(np.float64) - x_hat.astype(np.float64))
        broken = self.bound.broken(x, x_hat, difference)
        if broken.any():
            row = self.n + int(broken.argmax())
            raise RunError(f"row {row} decodes with an error beyond the bound: please report this")
        l2 = np.square(difference).mean(1)
        self.digest.update(np.ascontiguousarray(x_hat).view(np.uint8).data)
        self.n += len(x)
        self.values += x.size
        self.total += float(l2.sum()) * x.shape[1]
        self.largest_row = max(self.largest_row, float(l2.max()))
        self.largest_value = max(self.largest_value, float(difference.max()))


def write_rows(
    file: BinaryIO, codec: "Codec", rows: Rows, settings: "Settings", model: bytes, bound: Bound
) -> "tuple[Distortion, Sizes]":
    """Write all rows as a compressed file; return the errors of what they decode to, and where the bytes went."""
    import numpy as np

    from llgae_cli.codec.entropy_coder import CODER
    from llgae_cli.storage.compressed_file import CompressedWriter
    from llgae_cli.storage.compressed_header import Header

    block_rows = count_block_rows(rows)
    header = Header(
        rows.n, rows.shape, rows.dtype, codec.identity, True, CODER, settings.pack(), block_rows, len(model)
    )
    error, counter = Distortion(bound), RowCounter("compressed", rows.n)
    with CompressedWriter(file, header, model) as writer:
        for x in rows.chunks(block_rows):
            for start, payload in enumerate(codec.encode_blocks(x, settings, block_rows)):
                block = x[start * block_rows : (start + 1) * block_rows]
                error.add(block, codec.decode_block(payload, len(block), np.dtype(rows.dtype), settings))
                writer.write(payload)
            counter.add(len(x))
    assert writer.sizes is not None
    return error, writer.sizes


def verify_file(path: Path, codec: "Codec", rows: Rows, settings: "Settings", expected: Distortion) -> None:
    """Decode a file and compare it with the rows and with what its blocks decoded to before they were written.

    Raises RunError where it differs, or breaks the bound.
    """
    import numpy as np

    from llgae_cli.storage.compressed_file import CompressedFile

    error, counter = Distortion(expected.bound), RowCounter("verified", rows.n)
    try:
        with CompressedFile(path) as file:
            number = 0
            for x in rows.chunks(file.header.block_rows):
                for start in range(0, len(x), file.header.block_rows):
                    block = x[start : start + file.header.block_rows]
                    payload = file.read_block(number)
                    error.add(block, codec.decode_block(payload, len(block), np.dtype(rows.dtype), settings))
                    number += 1
                counter.add(len(x))
    except InputError as wrong:
        raise RunError(f"--verify: {show_path(path)} cannot be read back ({printable(wrong, 200)})") from None
    if error.digest.digest() != expected.digest.digest():
        raise RunError(f"--verify: {show_path(path)} decodes to other values than before it was written")
