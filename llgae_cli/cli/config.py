"""`llgae config`."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from llgae_cli.cli.console import print_json, print_lines, write_stdout
from llgae_cli.cli.options import Json, Overrides
from llgae_cli.config import read_config, schema


def config(
    config: Annotated[
        list[Path] | None,
        typer.Option(
            "--config",
            "-c",
            help="YAML config, or a shipped one by name; given several times, the later wins.",
            metavar="FILE",
        ),
    ] = None,
    overrides: Overrides = None,
    show_schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema: type, default and description of every key.")
    ] = False,
    show_sweep_schema: Annotated[
        bool, typer.Option("--sweep-schema", help="Print the JSON Schema of a sweep file.")
    ] = False,
    json: Json = False,
) -> None:
    """Run `llgae config`; `app` has its help."""
    if show_sweep_schema:
        from llgae_cli.sweep import sweep_schema

        print_json(sweep_schema())
        return
    if show_schema:
        print_json(schema())
        return
    settings = read_config(config or [], overrides or [])
    if json:
        print_json(settings.used_values())
        return
    print_lines(f"# identity cfg{settings.identity()}")
    write_stdout(yaml.safe_dump(settings.used_values(), sort_keys=False, allow_unicode=True))
