"""The JSON files in a cell's folder: its result, or its failure."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from llgae_cli.errors import InputError
from llgae_cli.storage.json_files import Count, Measure, Scalar, Text, read_json, validate

MAX_BYTES = 100_000  # of a record, which has some 500


class Record(BaseModel):
    """A mapping of names to plain values. Names that a later version added are kept."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)


class RungResult(Record):
    """Figures of a cell after some of its epochs. Mean L2 in squared grey levels per pixel."""

    checkpoint: str = Field(min_length=1, max_length=255)
    mean_l2: Measure
    train_mean_l2: Measure
    validation_mean_l2: Measure | None
    epoch: Count
    seconds: Measure
    threads: Count

    @field_validator("checkpoint")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if any(c in value for c in "/\\\0"):
            raise ValueError("has to be the name of a file in the cell's folder")
        return value


class CellResult(RungResult):
    """Figures of a cell that trained to its end, with the fields of `evaluation.rate.Rate`.

    Earlier versions had no codec and did not write `bits_estimated`: all their rates are estimates. The figures of the
    held-out samples are None where none are held out, and in results of earlier versions.
    """

    bits_float: Measure
    bits_k: Measure
    bits_coded: Measure
    mean_l2_coded: Measure
    step: Measure
    bits_estimated: bool = True
    validation_bits_coded: Measure | None = None
    validation_mean_l2_coded: Measure | None = None


class CellFailure(Record):
    """Why a cell failed, and the last line of its log."""

    reason: Text
    last_line: Text


def read_record(path: Path, model: type[Record]) -> dict[str, Any] | None:
    """Return the record in a file, None where there is no file.

    Raises InputError, in one line, for a file that cannot be read, is not JSON or does not fit the model.
    """
    try:
        return validate(model, read_json(path, MAX_BYTES, "record of a sweep"), path).model_dump()
    except FileNotFoundError:
        return None
    except InputError as error:
        raise InputError(f"{error}; remove the file to run this cell again") from None
