"""The only module that reads or writes record files: one JSON file per (data, pair, method, protocol, seed).

`root` is always the folder that holds the records (`results/records`, or the `--out` folder of a custom run).
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dfkd.errors import UserError
from dfkd.files import replace_file

VERSION = 1
ACCOUNTS = ("setup", "prior", "synthesis", "buffer", "distillation", "evaluation", "bookkeeping")
FREE_ACCOUNTS = ("evaluation", "bookkeeping")  # paid by the judge, so not part of `scored`
FINISHED = ("ok", "diverged", "unsupported")  # a result; the others are attempts
CLOCK_TOLERANCE = 1e-3  # of the total, between the sum of the accounts and the clock


def _object(optional: dict | None = None, /, **properties: dict) -> dict:
    """An object in which every named key but the optional ones is required and further keys may join."""
    return {"type": "object", "required": list(properties), "properties": properties | (optional or {})}


_TEXT = {"type": "string", "minLength": 1}
_NOTE = {"type": ["string", "null"]}
_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number", "minimum": 0}
_VALUE = {"type": ["number", "null"]}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_FOLDER = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"}
_NETWORK = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.]*$"}  # a hyphen parts the pair

# Of the synthetic images, see dfkd/engine/diagnostics.py.
_DIAGNOSTICS = _object(
    images=_COUNT,
    agreement=_SHARE | {"type": ["number", "null"]},
    classes={"type": "array", "items": _SHARE, "minItems": 1},
    diversity={"type": ["number", "null"], "minimum": 0},  # 1: as diverse as the real test images
    frechet={"type": "number", "minimum": 0},
)

SCHEMA: dict = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Record of one data-free distillation run",
    **_object(
        {
            "diagnostics": _DIAGNOSTICS | {"type": ["object", "null"]},
            "report": {"type": "object", "additionalProperties": {"type": "number"}},  # what the method says
        },
        schema={"const": VERSION},
        status={"enum": ["ok", "diverged", "failed", "partial", "unsupported"]},
        custom=_FLAG,  # changed by --set: has no place in the tables
        reference=_FLAG,  # a bound: shown beside the methods, never ranked
        identity=_object(
            data=_FOLDER, teacher=_NETWORK, student=_NETWORK, method=_FOLDER, protocol=_FOLDER, seed=_COUNT
        ),
        metrics=_object(
            name={"enum": ["top1", "miou"]},  # percent; fraction
            last=_VALUE,
            oracle_best=_VALUE,
            teacher=_VALUE,
            curve={"type": "array", "items": _object(step=_COUNT, seconds=_SECONDS, value=_VALUE)},
        ),
        time=_object(
            # Of `scored`, the prior apart: what serves every student of the teacher.
            {"shared": _SECONDS},
            **dict.fromkeys(ACCOUNTS, _SECONDS),
            scored=_SECONDS,
            total=_SECONDS,
            resumes=_COUNT,
        ),
        cost=_object(
            images_synthesised=_COUNT,
            student_steps=_COUNT,
            teacher_forwards=_COUNT,  # images, not batches
            peak_memory_bytes={"type": ["integer", "null"], "minimum": 0},
        ),
        prior=_object(
            {
                "name": _NOTE,
                "origin": {"enum": ["trained", "adopted", "foreign", None]},
                "seconds": {"type": ["number", "null"], "minimum": 0},  # its training; 0 where not known
            },
            kind=_TEXT,
            trained_on=_NOTE,
            digest=_NOTE,
        ),
        provenance=_object(
            code=_object(method=_TEXT, harness=_TEXT),
            config=_TEXT,
            data=_object({"test_changed": _FLAG, "subset": _FLAG}, digest=_TEXT, changed=_NOTE),
            teacher=_object(digest=_NOTE, origin=_NOTE, accuracy=_VALUE),
            commit=_NOTE,
            versions={"type": "object"},
            hardware=_object(**{"class": _TEXT, "details": {}}),
            date=_TEXT,
        ),
        config={"type": "object"},
    ),
}


class Cell(NamedTuple):
    """A place in a table: everything that names a run but its seed."""

    data: str
    protocol: str
    teacher: str
    student: str
    method: str


def cell_of(record: Mapping[str, Any]) -> Cell:
    """The cell that a record belongs to."""
    return Cell(*(record["identity"][field] for field in Cell._fields))


def cells(records: Iterable[dict]) -> dict[Cell, list[dict]]:
    """The records of each cell, cells in order of their names and records in order of their seeds."""
    grouped: dict[Cell, list[dict]] = {}
    for record in sorted(records, key=lambda record: (cell_of(record), record["identity"]["seed"])):
        grouped.setdefault(cell_of(record), []).append(record)
    return grouped


def path_of(identity: Mapping[str, Any], root: str | Path) -> Path:
    """Where the record of this identity lies under `root`."""
    pair = f"{identity['teacher']}-{identity['student']}"
    name = f"{identity['protocol']}-seed{identity['seed']}.json"
    return Path(root) / identity["data"] / pair / identity["method"] / name


def validate(record: Any) -> None:
    """Raise `UserError`, naming the key, unless `record` satisfies the schema and its clock adds up."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(record))
    if error is not None:
        raise UserError(f"record: {_dotted(error.absolute_path)}{error.message.splitlines()[0][:200]}")
    for path, number in _numbers(record):
        if not math.isfinite(number):
            raise UserError(f"record: {_dotted(path)}{number} is not a number that JSON knows; write null")
    _check_clock(record["time"])
    if record["status"] == "ok":
        for key in ("last", "oracle_best"):
            if record["metrics"][key] is None:
                raise UserError(f"record: metrics.{key}: null, but the status is ok")


def write(record: dict, root: str | Path) -> Path:
    """Validate the record and put it in its place in one step; returns the path."""
    validate(record)
    path = path_of(record["identity"], root)
    try:
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except TypeError as error:  # in parts that the schema leaves open, such as the configuration
        raise UserError(f"record: {error}") from error
    replace_file(path, text + "\n")
    return path


def keep(record: dict, root: str | Path) -> Path | None:
    """As `write`, but an interrupted or failed run never takes the place of a finished one (then None)."""
    path = path_of(record["identity"], root)
    if record["status"] not in FINISHED and path.is_file() and read(path)["status"] in FINISHED:
        return None
    return write(record, root)


def read(path: str | Path) -> dict:
    """The record in this file; `UserError` names the file, and the key that is wrong."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        validate(record)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable record: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return record


def read_all(root: str | Path) -> list[dict]:
    """Every record under `root`, in order of their paths; none where the folder is missing."""
    records = []
    for path in sorted(Path(root).glob("*/*/*/*.json")):
        record = read(path)
        if path_of(record["identity"], root) != path:
            place = path_of(record["identity"], root)
            raise UserError(f"{path}: record: identity: names another place, {place}")
        records.append(record)
    return records


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(SCHEMA)


def _check_clock(time: Mapping[str, float]) -> None:
    spent = sum(time[account] for account in ACCOUNTS)
    tolerance = CLOCK_TOLERANCE * time["total"] + 1e-6
    if abs(spent - time["total"]) > tolerance:
        raise UserError(f"record: time.total: {time['total']} s, but the accounts add up to {spent:.6g} s")
    scored = time["total"] - sum(time[account] for account in FREE_ACCOUNTS)
    if abs(scored - time["scored"]) > tolerance:
        raise UserError(
            f"record: time.scored: {time['scored']} s, but total less {' and '.join(FREE_ACCOUNTS)} "
            f"is {scored:.6g} s"
        )
    shared = time.get("shared", 0.0)
    if time["prior"] + shared > time["scored"] + tolerance:
        raise UserError(
            f"record: time.shared: {shared} s and the prior's {time['prior']} s are more than "
            f"time.scored, {time['scored']} s"
        )


def _numbers(value: Any, path: tuple = ()) -> Iterable[tuple[tuple, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, (*path, index))


def _dotted(path: Iterable[Any]) -> str:
    """`time.buffer: `, or nothing at the root."""
    name = ".".join(map(str, path))
    return f"{name}: " if name else ""
