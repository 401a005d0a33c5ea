"""The file of a checkpoint: written atomically, and read as data that can run no code."""

import errno
import hashlib
import os
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

from llgae_cli.config import parse_config
from llgae_cli.errors import InputError, RunError, explain, nearest, printable, show_path
from llgae_cli.interrupts import postpone
from llgae_cli.regular_files import open_for_reading
from llgae_cli.storage.atomic import write_atomically
from llgae_cli.storage.checkpoint import Checkpoint, pack, same_result, unpack
from llgae_cli.storage.names import SUFFIX, CheckpointName, slug

MAX_MEMBERS = 10_000  # of the zip: one per tensor and six more
MAX_DIRECTORY = 4_000_000  # bytes of the zip's table of contents
MAX_PICKLE = 64_000_000  # bytes of data.pkl: a history of some 500,000 epochs
MAX_PEEK = 4_000_000  # bytes of data.pkl that `is_finished` reads: a listing must not take seconds a file

_LABEL = b"llgae sha256 "
_SIGNATURE = re.compile(re.escape(_LABEL) + rb"([0-9a-f]{64})\Z")
SIGNATURE_BYTES = len(_LABEL) + 64

# All that torch.save writes for tensors and plain values. torch's own list for weights_only is longer, and has
# entries (bytearray, torch.Tensor) that allocate as much memory as the file asks for.
GLOBALS = frozenset(
    {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
    | {
        f"torch {kind}Storage"
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    }
)


def save(checkpoint: Checkpoint, folder: Path, name: CheckpointName) -> Path:
    """Write the checkpoint atomically under its name in `folder` (made where missing) and return its path.

    The file is read back before it gets its name. An interrupt waits until it is complete.

    A name stands for one config, seed, epoch and mean L2. A file of that name with the same result is kept, or replaced
    where the new one adds the mean L2 on the training samples. A file with another result, or a damaged one, is kept
    as `NAME.old-1`, -2, ...

    Raises RunError when the disk is full, the folder cannot be written, or a value may not be in a checkpoint; other
    files are then unchanged.
    """
    path = Path(folder) / name.format()
    content = pack(checkpoint)
    old = _load_same(path, checkpoint)
    if old is not None and (checkpoint.train_mean_l2 is None or old.train_mean_l2 is not None):
        return path
    with postpone(), write_atomically(path, keep_old=old is None) as temporary:
        _write(content, temporary)
    return path


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Write the checkpoint atomically at `path`, in place of what is there. Raises RunError as `save`."""
    content = pack(checkpoint)
    with postpone(), write_atomically(path) as temporary:
        _write(content, temporary)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU. No code in the file can run, and memory is bounded by its size.

    Raises InputError, in one line, for a file that is missing (with the nearest name), cut short, damaged, not a
    checkpoint, of another format version, hostile, or with a field that is missing or of a wrong type.
    """
    path = Path(path)
    with open_checkpoint(path) as file:
        try:
            inspect(file)
            return unpack(_read(file))
        except InputError as error:
            raise InputError(f"{show_path(path)}: {error}") from None


def compare_name(path: Path, checkpoint: Checkpoint) -> str | None:
    """Return a warning where the file's name disagrees with its content, which is the truth; None if they agree."""
    path = Path(path)
    try:
        name = CheckpointName.parse(path.name)
    except InputError:
        return f"{printable(path.name, 255)}: not the name of a checkpoint; its content is used"
    truth: dict[str, Any] = {
        "epoch": checkpoint.epoch,
        **{key: checkpoint.config[key] for key in ("seed", "task", "model", "K", "embed-dim", "beta", "n-step", "lr")
           if key in checkpoint.config},
    }  # fmt: skip
    named = {key: getattr(name, key.replace("-", "_")) for key in truth}
    if "task" in truth:
        truth["task"] = slug(str(truth["task"]))
    if name.config_id:  # the original's names have neither
        named["trainer"], truth["trainer"] = name.trainer, checkpoint.config.get("trainer", name.trainer)
        identity = _identity(checkpoint.config)  # an older name has six digits of it
        named["config"] = name.config_id
        truth["config"] = name.config_id if identity is None else identity[: len(name.config_id)]
    wrong = [
        f"{key} {named[key]} for {printable(truth[key])}"
        for key in named
        if not (_is_close(named[key], truth[key], 1e-5) if key == "lr" else named[key] == truth[key])
    ]
    if f"{name.mean_l2:.5f}" != f"{checkpoint.mean_l2:.5f}" and not _is_close(name.mean_l2, checkpoint.mean_l2, 1e-12):
        wrong.append(f"mean L2 {name.mean_l2:.5f} for {checkpoint.mean_l2:.5f}")
    if not wrong:
        return None
    return f"{path.name}: the name disagrees with the content, which is used: {', '.join(wrong)}"


def is_finished(path: Path) -> bool | None:
    """Return whether a checkpoint is that of a complete run; None where the file does not say.

    Only `train_mean_l2` is searched, which an unfinished run has as None. Nothing in the file is run or checked, and
    torch is not imported: this is for listings, which `load` would make slow.
    """
    key, before, known = "train_mean_l2", None, False
    slots: set[Any] = set()  # numbers under which the pickle keeps the key
    try:
        with open_checkpoint(path) as file, zipfile.ZipFile(file) as archive:
            member = next(member for member in archive.infolist() if member.filename.endswith("/data.pkl"))
            if member.file_size > MAX_PEEK:
                return None
            for operation, argument, _ in pickletools.genops(archive.read(member)):
                if operation.name == "BINUNICODE":
                    before = argument
                elif operation.name in ("BINPUT", "LONG_BINPUT"):  # the text before gets a number, see the next case
                    slots.update({argument} if before == key else ())
                elif operation.name in ("BINGET", "LONG_BINGET"):
                    before = key if argument in slots else None
                else:
                    if before == key and operation.name == "NONE":
                        return False
                    known, before = known or before == key, None
    except Exception:  # any of the errors of zipfile and pickletools for a damaged file
        return None
    return True if known else None


def inspect(file: IO[bytes]) -> None:
    """Check, in bounded memory and running nothing, that the file is complete and harmless. Raises InputError.

    It must be a zip of uncompressed members that together are no larger than the file, with a correct checksum and a
    pickle that names only tensors. The checksum is the SHA-256 of `sign`; a file that torch itself has written has
    none, and there the zip's own checksum of each member is verified.
    """
    signed = _check_end(file)
    try:
        with zipfile.ZipFile(file) as archive:
            _check_members(archive.infolist(), os.fstat(file.fileno()).st_size)
            if not signed and archive.testzip() is not None:
                raise InputError("damaged: a checksum does not match")
            _check_pickle(archive)
    except InputError:
        raise
    except Exception as error:  # zipfile raises half a dozen kinds for a damaged table of contents
        raise InputError(f"cut short or damaged ({printable(error)})") from None


def _check_end(file: IO[bytes]) -> bool:
    """Return whether the file ends in a checksum. Raises InputError for a wrong one.

    Also bounds the size of the zip's table of contents, which zipfile would read completely.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise InputError("empty; a checkpoint of llgae was expected")
    file.seek(0)
    if not file.read(4).startswith(b"PK\x03\x04"):
        raise InputError("not a checkpoint of llgae (not even the zip file that one is)")
    file.seek(max(0, size - 98 - SIGNATURE_BYTES))
    end = file.read()
    signature = _SIGNATURE.search(end)
    if signature:
        end = end[: signature.start()]
    end = end[-98:]
    if (
        len(end) < 98
        or end[76:80] != b"PK\x05\x06"
        or end[96:] != struct.pack("<H", SIGNATURE_BYTES if signature else 0)
    ):
        raise InputError("cut short or damaged: its end is not that of a zip file")
    has_long_form, long_form = end[56:60] == b"PK\x06\x07", end[:4] == b"PK\x06\x06"
    if has_long_form != long_form:
        raise InputError("cut short or damaged: its end is not that of a zip file")
    (length,) = struct.unpack("<Q", end[40:48]) if long_form else struct.unpack("<I", end[88:92])
    if length > MAX_DIRECTORY:
        raise InputError("not a checkpoint of llgae (too many parts)")
    if signature and _digest(file, size - len(signature[1])) != signature[1]:
        raise InputError("damaged: its checksum does not match")
    return signature is not None


def sign(file: IO[bytes]) -> None:
    """Append the SHA-256 of the file as the zip's comment, which every reader of zip files skips.

    The zip's own checksums do not cover its table of contents, where one flipped bit makes a member a folder, and
    torch then returns uninitialised memory as the tensor.
    """
    file.seek(-2, os.SEEK_END)  # the comment's length, so far 0
    file.write(struct.pack("<H", SIGNATURE_BYTES) + _LABEL)
    file.write(_digest(file, file.tell()))


def _digest(file: IO[bytes], length: int) -> bytes:
    """Return the SHA-256 of the first `length` bytes in hex, and leave the file at their end."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (chunk := file.read(min(length, 1 << 20))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    names = [member.filename for member in members]
    if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
        raise InputError("not a checkpoint of llgae (too many parts, or one of them twice)")
    if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
        raise InputError("not a checkpoint of llgae (compressed, which a checkpoint never is)")
    if any(member.filename.endswith("/") or member.external_attr & 0x10 for member in members):
        raise InputError("not a checkpoint of llgae (a part is marked as a folder)")  # see `sign`
    if sum(member.file_size for member in members) > size:
        raise InputError("not a checkpoint of llgae (its parts overlap)")
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or sum(name.endswith("/data.pkl") for name in names) != 1:
        raise InputError("not a checkpoint of llgae (a zip file of another kind)")
    pickled = next(member for member in members if member.filename.endswith("/data.pkl"))
    if pickled.filename.count("/") != 1 or pickled.file_size > MAX_PICKLE:
        raise InputError("not a checkpoint of llgae (its data.pkl is too large, or not in its place)")


def _check_pickle(archive: zipfile.ZipFile) -> None:
    name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
    size = archive.getinfo(name).file_size
    with archive.open(name) as pickled:
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and argument not in GLOBALS:
                what = printable(argument or "objects")
                raise InputError(f"refused: it holds {what}, and a checkpoint has only tensors and plain values")
            # Python's own reader keeps values in an array with so many places.
            if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > size:
                raise InputError("refused: its pickle numbers more values than it can have")


def _read(file: IO[bytes]) -> Any:
    import torch

    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own future: nothing a user can do
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises nearly any error for a manipulated file (UnpicklingError, RuntimeError, KeyError,
        # TypeError, MemoryError, RecursionError, ...), and the file is always the cause.
        raise explain_failure(error) from None


def explain_failure(error: Exception) -> InputError:
    """Return the error of a checkpoint whose pickle cannot be read, in one line."""
    line = (str(error).splitlines() or [""])[0]
    return InputError(f"not a checkpoint that can be read ({type(error).__name__}: {printable(line)})")


def open_checkpoint(path: Path) -> IO[bytes]:
    """Open a checkpoint. Raises InputError for a file that is missing (with the nearest name) or cannot be read."""
    try:
        return os.fdopen(open_for_reading(path), "rb")
    except FileNotFoundError:
        near = nearest(path.name, (p.name for p in path.parent.glob(f"*{SUFFIX}"))) if path.parent.is_dir() else ""
        raise InputError(f"{show_path(path)}: no such checkpoint{near}") from None
    except IsADirectoryError:
        raise InputError(f"{show_path(path)}: a folder; give one of the checkpoints in it") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(f"{show_path(path)}: cannot be read ({explain(error)})") from None


class _ErrorKeeper:
    """A file for torch.save that keeps the error of a write: torch.save raises a RuntimeError without the reason."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self.file.write(data)
            except BaseException as error:  # a full disk, and Ctrl-C too
                self.error = error
        return len(data)  # pretend success: torch's writer cannot be stopped half-way, and `error` is raised after it

    def flush(self) -> None:
        pass


def _write(content: dict[str, Any], path: Path) -> None:
    import torch

    with open(path, "x+b") as file:
        keeper = _ErrorKeeper(file)
        try:
            torch.save(content, keeper)  # type: ignore[arg-type]
        except RuntimeError as error:  # a value that torch.save cannot write
            raise RunError(f"no checkpoint is written: {explain(error)}") from None
        if keeper.error is not None:
            raise keeper.error
        sign(file)
    with open(path, "rb") as written:
        try:
            inspect(written)
        except InputError as error:
            raise OSError(errno.EIO, f"what was written does not read back: {error}") from None


def _load_same(path: Path, checkpoint: Checkpoint) -> Checkpoint | None:
    """Return the checkpoint in a file that has the same result; None for another one, a damaged file or no file."""
    try:
        old = load(path) if path.exists() else None
    except (InputError, OSError):  # OSError: a folder that cannot be entered, which the write will report
        return None
    return old if old is not None and same_result(old, checkpoint) else None


def _identity(config: dict[str, Any]) -> str | None:
    try:
        return parse_config(config).identity()
    except InputError:  # a config of another version of llgae
        return None


def _is_close(one: Any, other: Any, share: float) -> bool:
    return isinstance(other, (int, float)) and abs(one - other) <= share * abs(other)
