"""The JSON Schema of a sweep file, for editors."""

from typing import Any

from llgae_cli.config import schema
from llgae_cli.sweep.halving import Halving
from llgae_cli.sweep.plan import SweepFile
from llgae_cli.sweep.search import Search

RANGE = {
    "type": "object",
    "properties": {
        "low": {"type": "number"},
        "high": {"type": "number"},
        "log": {"type": "boolean", "description": "on a logarithmic scale"},
        "step": {"type": "number", "exclusiveMinimum": 0, "description": "distance of the values from each other"},
    },
    "required": ["low", "high"],
    "additionalProperties": False,
}


def sweep_schema() -> dict[str, Any]:
    """Return the JSON Schema of a sweep file; `base` is a config or the path of one, `grid` and `zip` hold its keys."""
    config = schema()
    values = {
        name: {"type": "array", "items": {"$ref": f"#/$defs/config/properties/{name}"}} for name in config["properties"]
    }
    rows = {"type": "object", "properties": values, "additionalProperties": False}
    search = Search.model_json_schema()
    search["properties"]["keys"] = {
        "type": "object",
        "properties": {name: {"anyOf": [RANGE, list_of]} for name, list_of in values.items()},
        "additionalProperties": False,
        "description": "a range, or a list of choices, for each key",
    }
    document = SweepFile.model_json_schema()
    document["$defs"] = {
        **document.get("$defs", {}),
        "config": {name: config[name] for name in ("type", "properties", "additionalProperties")},
        "rows": rows,
        "halving": Halving.model_json_schema(),
        "search": search,
    }
    part = {"anyOf": [{"type": "string", "description": "path of a config"}, {"$ref": "#/$defs/config"}]}
    crossed = {"anyOf": [{"$ref": "#/$defs/rows"}, {"type": "array", "items": {"$ref": "#/$defs/rows"}}]}
    described: dict[str, tuple[dict[str, Any], str]] = {
        "base": ({"anyOf": [*part["anyOf"], {"type": "array", "items": part}]}, "what all cells share"),
        "grid": (crossed, "lists of values; all combinations are run"),
        "zip": (crossed, "lists of values of one length: first with first, second with second"),
        "halving": ({"$ref": "#/$defs/halving"}, "after these epochs the worse cells stop"),
        "search": ({"$ref": "#/$defs/search"}, "trials within ranges, in place of grid and zip"),
    }
    for name, (rule, text) in described.items():
        document["properties"][name] = {**rule, "description": text}
    document["description"] = "A sweep: many runs from one file."
    return document
