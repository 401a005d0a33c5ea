"""Small JSON files that anybody may have edited, read and validated as plain data."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from llgae_cli.errors import InputError, explain, printable, show_path
from llgae_cli.regular_files import read_text

MAX_INTEGER = 1 << 53  # tables and figures show integers up to here exactly
MAX_TEXT = 10_000  # characters
MAX_SHOWN = 3  # problems in one message

Whole = Annotated[StrictInt, Field(ge=-MAX_INTEGER, le=MAX_INTEGER)]
Text = Annotated[StrictStr, Field(max_length=MAX_TEXT)]
Scalar = Whole | StrictFloat | StrictBool | Text | None
Measure = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=MAX_INTEGER)]

Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, limit: int, what: str) -> Any:
    """Return the plain values in a JSON file of at most `limit` bytes, which messages call `what`.

    Raises FileNotFoundError where it is missing; InputError, in one line, where it cannot be read or is not JSON.
    """
    text = read_text(path, limit, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise InputError(f"{show_path(path)}: not valid JSON ({explain(error)})") from None


def validate(model: type[Model], content: Any, path: Path) -> Model:
    """Return the content of a file as the model. InputError names the file, the wrong keys and the problems."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{show_path(path)}: {summarise(error)}") from None


def summarise(error: ValidationError) -> str:
    """Return the first problems of a validation in one line: `key: problem; key: problem`."""
    problems: dict[str, str] = {}
    for problem in error.errors():  # a key that takes one of several types has a problem with each
        place = ".".join(str(part) for part in problem["loc"][:3]) or "content"
        problems.setdefault(place.removesuffix(".constrained-str"), problem["msg"].removeprefix("Value error, "))
    shown = list(problems.items())[:MAX_SHOWN]
    return "; ".join(f"{printable(place)}: {printable(message, 120)}" for place, message in shown)
