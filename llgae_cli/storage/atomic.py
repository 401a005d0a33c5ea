"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llgae_cli.errors import RunError, printable
from llgae_cli.storage.folders import clean_temporaries, discard, made_folder, temporary_path


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; what the block wrote there is renamed to `path` when it ends well.

    When the block raises, the temporary file is removed and `path` is as it was. `durable` also waits for the disk,
    so that a power cut leaves the old file or the new one. Raises RunError where the system refuses to write.
    """
    path = Path(path)
    try:
        made_folder(path.parent)
        clean_temporaries(path.parent)  # a killed `encode` may have left gigabytes here
    except (OSError, ValueError) as error:
        raise RunError(f"{printable(path, 300)}: cannot be written ({_reason(error)})") from None
    temporary = temporary_path(path.parent)
    try:
        yield temporary
        if durable:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise RunError(f"{printable(path, 300)}: cannot be written ({_reason(error)})") from None
    finally:
        discard(temporary)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or printable(error, 200))
