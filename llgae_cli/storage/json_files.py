"""Small JSON files, read as data that anybody may have written."""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from llgae_cli.errors import InputError, printable
from llgae_cli.regular_files import read_text

MOST = 1 << 53  # of a whole number: what a table and a figure still show exactly
LONGEST = 10_000  # letters of a text
SHOWN = 3  # faults told in one line

Whole = Annotated[StrictInt, Field(ge=-MOST, le=MOST)]
Text = Annotated[StrictStr, Field(max_length=LONGEST)]
Scalar = Whole | StrictFloat | StrictBool | Text | None
Measure = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=MOST)]

Model = TypeVar("Model", bound=BaseModel)


def read_json(path: Path, limit: int, what: str) -> Any:
    """Return the plain values in a JSON file of at most `limit` bytes, which messages call `what`.

    Raises FileNotFoundError where there is none; InputError, in one line, where it cannot be read or is no JSON.
    """
    text = read_text(path, limit, what)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise InputError(f"{printable(path, 200)}: not valid JSON ({printable(error)})") from None


def validate(model: type[Model], content: Any, path: Path) -> Model:
    """Return the content of a file as the model; InputError names the file, the keys at fault and what is wrong."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        faults: dict[str, str] = {}
        for problem in error.errors():  # a key that takes one of several types has a problem with each
            place = ".".join(str(part) for part in problem["loc"][:3]) or "content"
            faults.setdefault(place.removesuffix(".constrained-str"), problem["msg"])
        told = "; ".join(f"{printable(place)}: {printable(said, 120)}" for place, said in list(faults.items())[:SHOWN])
        raise InputError(f"{printable(path, 200)}: {told}") from None
