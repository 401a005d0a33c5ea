"""`python -m llgae_cli` and the script `llgae` are the same command."""

import os
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. A signal that comes while it is being imported ends the process without a traceback."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: os._exit(128 + number))  # nothing has begun yet
    from llgae_cli.threads import keep_freed_memory, set_wait_policy

    set_wait_policy()
    keep_freed_memory()
    from llgae_cli.cli.app import main

    main()


if __name__ == "__main__":
    main()
