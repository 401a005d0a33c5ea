"""A checkpoint on disk: written whole or not at all, and read as data that can run no code."""

import errno
import hashlib
import itertools
import os
import pickletools
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

from llgae_cli.config import parse_config
from llgae_cli.errors import InputError, RunError, nearest, printable
from llgae_cli.interrupts import postponed
from llgae_cli.regular_files import open_for_reading
from llgae_cli.storage.checkpoint import Checkpoint, packed, same_result, unpacked
from llgae_cli.storage.folders import discard, flush_folder, made_folder, temporary_path
from llgae_cli.storage.names import SUFFIX, CheckpointName, slug

MAX_MEMBERS = 10_000  # of the zip: one a tensor and six more
MAX_DIRECTORY = 4_000_000  # bytes of the zip's table of contents
MAX_PICKLE = 64_000_000  # bytes of data.pkl: a history of some 500,000 epochs

_LABEL = b"llgae sha256 "
_SIGNATURE = re.compile(re.escape(_LABEL) + rb"([0-9a-f]{64})\Z")
COMMENT = len(_LABEL) + 64  # bytes

# All that torch.save writes for tensors and plain values. torch's own list for weights_only is longer, and has
# entries (bytearray, torch.Tensor) that allocate what they are told to.
_GLOBALS = frozenset(
    {"torch._utils _rebuild_tensor_v2", "collections OrderedDict"}
    | {
        f"torch {kind}Storage"
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    }
)


def save(checkpoint: Checkpoint, folder: Path, name: CheckpointName) -> Path:
    """Write the checkpoint under its name in `folder` (made where missing) and return its path.

    The file is written under a temporary name, flushed to the disk, read through once and renamed: a reader, a
    killed process or a full disk never leaves half of one under the final name. A name stands for one config, seed,
    epoch and mean L2. When it is there already with the same result, that file is kept as it is, or replaced where
    the new one adds the mean L2 on the training samples; when its content is another's (or can no longer be read),
    the old file stays beside the new one as `NAME.old-1`, -2, ... An interrupt waits for the file to be whole.

    Raises RunError when the disk is full, the folder cannot be written, the mean L2 is not finite or the model's
    tensors are not; other files are then as they were and the temporary one is gone.
    """
    final = Path(folder) / name.format()
    content = packed(checkpoint)
    temporary = None
    try:
        there = _same(final, checkpoint)
        if there is not None and (checkpoint.train_mean_l2 is None or there.train_mean_l2 is not None):
            return final
        made_folder(final.parent)
        temporary = temporary_path(final.parent)
        with postponed():
            _write(content, temporary)
            aside = _keep_aside(final) if there is None else None
            try:
                os.replace(temporary, final)
            except OSError:
                _put_back(aside, final)
                raise
            flush_folder(final.parent)
    except (OSError, RuntimeError) as error:  # RuntimeError: what torch.save cannot write
        reason = getattr(error, "strerror", None) or printable(error, 200)
        raise RunError(f"{printable(folder, 300)}: no checkpoint could be written ({reason})") from None
    finally:
        if temporary is not None:
            discard(temporary)
    return final


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, tensors on the CPU. No code in the file can run, and no memory beyond its size is asked for.

    Raises InputError, in one line, for a file that is missing (with the nearest name), cut short, damaged, not a
    checkpoint, of another format version, hostile, or with a field that is missing or of a wrong type.
    """
    path = Path(path)
    with _opened(path) as file:
        try:
            inspect(file)
            return unpacked(_read(file))
        except InputError as error:
            raise InputError(f"{printable(path, 300)}: {error}") from None


def disagreement(path: Path, checkpoint: Checkpoint) -> str | None:
    """A line when the file's name says otherwise than its content, which is the truth; None when they agree."""
    path = Path(path)
    try:
        name = CheckpointName.parse(path.name)
    except InputError:
        return f"{printable(path.name, 255)}: not the name of a checkpoint; what is inside counts"
    truth: dict[str, Any] = {
        "epoch": checkpoint.epoch,
        **{key: checkpoint.config[key] for key in ("seed", "task", "model", "K", "embed-dim", "beta", "n-step", "lr")
           if key in checkpoint.config},
    }  # fmt: skip
    said = {key: getattr(name, key.replace("-", "_")) for key in truth}
    if "task" in truth:
        truth["task"] = slug(str(truth["task"]))
    if name.config_id:  # the original's names have neither
        said["trainer"], truth["trainer"] = name.trainer, checkpoint.config.get("trainer", name.trainer)
        identity = _identity(checkpoint.config)  # an older name has six digits of it
        said["config"] = name.config_id
        truth["config"] = name.config_id if identity is None else identity[: len(name.config_id)]
    wrong = [
        f"{key} {said[key]} for {printable(truth[key])}"
        for key in said
        if not (_close(said[key], truth[key], 1e-5) if key == "lr" else said[key] == truth[key])
    ]
    if f"{name.mean_l2:.5f}" != f"{checkpoint.mean_l2:.5f}" and not _close(name.mean_l2, checkpoint.mean_l2, 1e-12):
        wrong.append(f"mean L2 {name.mean_l2:.5f} for {checkpoint.mean_l2:.5f}")
    if not wrong:
        return None
    return f"{path.name}: the name disagrees with the content, which counts: {', '.join(wrong)}"


def inspect(file: IO[bytes]) -> None:
    """Check, in bounded memory and running nothing, that the file is what `save` writes: whole and harmless.

    A zip of stored members that add up to no more than the file, a checksum that agrees, and a pickle that names
    nothing but tensors. The checksum is `save`'s SHA-256 of the whole file, in the zip's comment; a file that torch
    itself has written again has none, and there the zip's own of each member count. Raises InputError.
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
    """Whether the file ends in a checksum, and then a right one; the zip's table of contents has a sane size.

    zipfile reads that table whole, whatever its size, so it is looked at before.
    """
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        raise InputError("empty; a checkpoint of llgae was expected")
    file.seek(0)
    if not file.read(4).startswith(b"PK\x03\x04"):
        raise InputError("not a checkpoint of llgae (not even the zip file that one is)")
    file.seek(max(0, size - 98 - COMMENT))
    end = file.read()
    signature = _SIGNATURE.search(end)
    if signature:
        end = end[: signature.start()]
    end = end[-98:]
    if len(end) < 98 or end[76:80] != b"PK\x05\x06" or end[96:] != struct.pack("<H", COMMENT if signature else 0):
        raise InputError("cut short or damaged: its end is not as it should be")
    has_long_form, long_form = end[56:60] == b"PK\x06\x07", end[:4] == b"PK\x06\x06"
    if has_long_form != long_form:
        raise InputError("cut short or damaged: its end is not as it should be")
    (length,) = struct.unpack("<Q", end[40:48]) if long_form else struct.unpack("<I", end[88:92])
    if length > MAX_DIRECTORY:
        raise InputError("not a checkpoint of llgae (too many parts)")
    if signature and _digest(file, size - len(signature[1])) != signature[1]:
        raise InputError("damaged: its checksum does not match")
    return signature is not None


def _sign(file: IO[bytes]) -> None:
    """Put a SHA-256 of everything before it into the zip's comment, which every reader of zip files passes over.

    The zip's own checksums do not cover its table of contents, where one flipped bit makes a member a folder, and
    torch then hands out memory that nobody has written as the tensor.
    """
    file.seek(-2, os.SEEK_END)  # the comment's length, until now 0
    file.write(struct.pack("<H", COMMENT) + _LABEL)
    file.write(_digest(file, file.tell()))


def _digest(file: IO[bytes], length: int) -> bytes:
    """The SHA-256 of the first `length` bytes in hex; the file is left at their end."""
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
        raise InputError("not a checkpoint of llgae (a part is marked as a folder)")  # see _sign
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
    with archive.open(name) as pickled:
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name in ("GLOBAL", "STACK_GLOBAL", "INST") and argument not in _GLOBALS:
                what = printable(argument or "objects")
                raise InputError(f"refused: it holds {what}, and a checkpoint has tensors and plain values alone")


def _read(file: IO[bytes]) -> Any:
    import torch

    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own future; a user can do nothing about it
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises nearly anything for a file that was tampered with (UnpicklingError, RuntimeError,
        # KeyError, TypeError, MemoryError, RecursionError, ...), and whichever it is, the file is the cause.
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"not a checkpoint that can be read ({type(error).__name__}: {printable(line)})") from None


def _opened(path: Path) -> IO[bytes]:
    try:
        return os.fdopen(open_for_reading(path), "rb")
    except FileNotFoundError:
        near = nearest(path.name, (p.name for p in path.parent.glob(f"*{SUFFIX}"))) if path.parent.is_dir() else ""
        raise InputError(f"{printable(path, 300)}: no such checkpoint{near}") from None
    except IsADirectoryError:
        raise InputError(f"{printable(path, 300)}: a folder; give one of the checkpoints in it") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{printable(path, 300)}: cannot be read ({reason})") from None


class _Remembering:
    """A file for torch.save, which turns whatever a write raises into a RuntimeError that no longer says why."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return self.file.write(data)
            except BaseException as error:  # a full disk, and Ctrl-C too
                self.error = error
        return len(data)  # as if all were well: torch's writer cannot be stopped half way, `error` is raised after it

    def flush(self) -> None:
        pass


def _write(content: dict[str, Any], path: Path) -> None:
    import torch

    with open(path, "x+b") as file:
        sink = _Remembering(file)
        torch.save(content, sink)  # type: ignore[arg-type]
        if sink.error is not None:
            raise sink.error
        _sign(file)
        file.flush()
        os.fsync(file.fileno())
    with open(path, "rb") as written:
        try:
            inspect(written)
        except InputError as error:
            raise OSError(errno.EIO, f"what was written does not read back: {error}") from None


def _same(path: Path, checkpoint: Checkpoint) -> Checkpoint | None:
    """What is in the file, where it is the same result; None for another's, for a damaged file and for no file."""
    try:
        there = load(path) if path.exists() else None
    except InputError:
        return None
    return there if there is not None and same_result(there, checkpoint) else None


def _keep_aside(final: Path) -> Path | None:
    """Give an existing file a second name, which is returned, so that replacing the first loses nothing."""
    if not os.path.lexists(final):
        return None
    numbers = itertools.count(1)
    while True:
        aside = final.with_name(f"{final.name}.old-{next(numbers)}")
        try:
            os.link(final, aside, follow_symlinks=False)
            return aside
        except FileExistsError:
            continue
        except OSError:  # a file system without links: for a moment no file has the name, and none is lost
            if not os.path.lexists(aside):
                os.rename(final, aside)
                return aside


def _put_back(aside: Path | None, final: Path) -> None:
    if aside is not None and os.path.lexists(final):
        aside.unlink(missing_ok=True)  # it was a link: the first name still holds the file
    elif aside is not None:
        os.rename(aside, final)


def _identity(config: dict[str, Any]) -> str | None:
    try:
        return parse_config(config).identity()
    except InputError:  # a config of another version of llgae
        return None


def _close(one: Any, other: Any, share: float) -> bool:
    return isinstance(other, (int, float)) and abs(one - other) <= share * abs(other)
