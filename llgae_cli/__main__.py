"""`python -m llgae_cli` is the `llgae` command."""

from llgae_cli.cli.app import main

if __name__ == "__main__":
    main()
