"""The only module that reads or writes record files: one JSON file per (data, pair, method, protocol, seed).

`root` is always the folder that holds the records (`results/records`, or the `--out` folder of a custom run).
"""

import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dfkd import documents
from dfkd.errors import UserError
from dfkd.files import find, replace_file
from dfkd.identity import Run
from dfkd.metrics import METRICS

VERSION = 1
CATEGORIES = ("setup", "prior", "synthesis", "buffer", "distillation", "evaluation", "bookkeeping")
FREE_CATEGORIES = ("evaluation", "bookkeeping")  # paid by the evaluator, so not part of `scored`
STATUSES = ("ok", "diverged", "failed", "partial", "unsupported")
FINISHED = ("ok", "diverged", "unsupported")  # a result; the others are attempts
CLOCK_TOLERANCE = 1e-3  # of the total, between the sum of the categories and the clock


def _object(optional: dict | None = None, /, **properties: dict) -> dict:
    """An object in which every named key but the optional ones is required and further keys may join."""
    return {"type": "object", "required": list(properties), "properties": properties | (optional or {})}


_TEXT = {"type": "string", "minLength": 1}
_NOTE = {"type": ["string", "null"]}
_FLAG = {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 0, "maximum": 2**53}  # as far as every reader of JSON counts
_SECONDS = {"type": "number", "minimum": 0, "maximum": 1e10}  # three centuries
_NUMBER = {"type": "number", "minimum": -1e300, "maximum": 1e300}  # means of such numbers are numbers
_VALUE = {"type": ["number", "null"]}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_FOLDER = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"}
_NETWORK = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.]*$"}  # a hyphen parts the pair

# Of the synthetic images, see dfkd/engine/diagnostics.py.
_DIAGNOSTICS = _object(
    {  # records from before there were these lack them
        "confidence": {"type": "array", "items": _SHARE, "minItems": 1},  # equal parts of [0, 1]
        "difficulty": _SHARE,
    },
    images=_COUNT,
    agreement=_SHARE | {"type": ["number", "null"]},
    classes={"type": "array", "items": _SHARE, "minItems": 1},
    diversity=_NUMBER | {"type": ["number", "null"], "minimum": 0},  # 1: as diverse as the real test images
    frechet=_NUMBER | {"minimum": 0},
)


def _when(key: str, value: Any, then: dict, otherwise: dict | None = None) -> dict:
    """A condition on an object that has `key` equal to `value`."""
    said = {"properties": {key: {"const": value}}, "required": [key]}
    return {"if": said, "then": then} | ({"else": otherwise} if otherwise else {})


def _within(low: float, high: float) -> dict:
    """The range of every score in `metrics`."""
    value = {"minimum": low, "maximum": high}
    curve = {"items": {"properties": {"value": value}}}
    return {"properties": {"curve": curve} | dict.fromkeys(("last", "oracle_best", "teacher"), value)}


def _metrics(**types: str) -> dict:
    """A record's scores are of these types."""
    return {"properties": {"metrics": {"properties": {key: {"type": name} for key, name in types.items()}}}}


SCHEMA: dict = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Record of one data-free distillation run",
    **_object(
        {
            "diagnostics": _DIAGNOSTICS | {"type": ["object", "null"]},
            "report": {"type": "object", "additionalProperties": _NUMBER},  # what the method says
            "error": _NOTE,
            "note": _NOTE,  # what the recipe says of itself
            "work": _NOTE,
        },
        schema={"const": VERSION},
        status={"enum": list(STATUSES)},
        custom=_FLAG,  # changed by --set: has no place in the tables
        reference=_FLAG,  # a reference row: shown beside the methods, never ranked
        identity=_object(
            data=_FOLDER, teacher=_NETWORK, student=_NETWORK, method=_FOLDER, protocol=_FOLDER, seed=_COUNT
        ),
        metrics=_object(
            name={"enum": list(METRICS)},
            last=_VALUE,
            oracle_best=_VALUE,
            teacher=_VALUE,
            curve={"type": "array", "items": _object(step=_COUNT, seconds=_SECONDS, value=_VALUE)},
        )
        | {"allOf": [_when("name", m.name, _within(m.low, m.high)) for m in METRICS.values()]},
        time=_object(
            {
                "shared": _SECONDS,  # of `scored`, the prior apart: what serves every student of the teacher
                "predicted": _SECONDS | {"type": ["number", "null"]},  # `scored` without the prior (tables/costs.py)
            },
            **dict.fromkeys(CATEGORIES, _SECONDS),
            scored=_SECONDS,
            total=_SECONDS,
            resumes=_COUNT,
        ),
        cost=_object(
            {
                "harness_memory_bytes": _COUNT,  # peak of the process that evaluates; charged to nobody
                "processor_seconds": _SECONDS,  # of both processes; of a resumed run since it was resumed
            },
            images_synthesised=_COUNT,
            student_steps=_COUNT,
            teacher_forwards=_COUNT,  # images, not batches
            peak_memory_bytes=_COUNT | {"type": ["integer", "null"]},
        ),
        prior=_object(
            {
                "name": _NOTE,
                "origin": {"enum": ["trained", "adopted", "foreign", None]},
                "seconds": _SECONDS | {"type": ["number", "null"]},  # its training; 0 where not known
            },
            kind=_TEXT,
            trained_on=_NOTE,
            digest=_NOTE,
        ),
        provenance=_object(
            {
                "isolation": {"enum": ["landlock", "audit-hook"]},  # what kept the method from real data
                "precision": {"enum": ["fp32", "tf32", "bf16"]},  # in which it ran
                "others": _SECONDS,  # processors that other work kept busy meanwhile, on average
                "compiled": _FLAG,
            },
            code=_object({"external": _FLAG}, method=_TEXT, harness=_TEXT),
            config=_TEXT,
            data=_object({"test_changed": _FLAG, "subset": _FLAG}, digest=_TEXT, changed=_NOTE),
            teacher=_object(digest=_NOTE, origin=_NOTE, accuracy=_NUMBER | _VALUE),
            commit=_NOTE,
            versions={"type": "object"},
            hardware=_object(**{"class": _TEXT, "details": {}}),
            date=_TEXT,
        ),
        config={"type": "object"},
    ),
    "allOf": [
        _when("status", "ok", _metrics(last="number", oracle_best="number"), _metrics(last="null")),
        _when("status", "ok", {"properties": {"error": {"type": "null"}}}),
        _when("status", "unsupported", {"required": ["error"], "properties": {"error": _TEXT}}),
    ],
}


class Found(NamedTuple):
    """What lies in a folder of records: those that can be read, and why the other files cannot."""

    records: list[dict]
    problems: list[UserError]


def validate(record: Any, where: object = "record") -> None:
    """Raise `UserError`, naming the key, unless `record` satisfies the schema and its numbers agree."""
    try:
        documents.sane(record)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    _check(record, where)


def _check(record: dict, where: object) -> None:
    """`validate`, of what a file held: that is plain JSON."""
    documents.check(record, SCHEMA, where)
    for key, problem in (*_clock(record["time"]), *_curve(**record["metrics"])):
        raise UserError(f"{where}: {key}: {problem}")


def write(record: dict, root: Path) -> Path:
    """Validate the record and put it in its place in one step, safe on the disk; returns the path."""
    try:
        text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:  # in parts that the schema leaves open
        raise UserError(f"record: {error}") from error
    text = text.encode("utf-8", "replace").decode()  # an error may name a file whose name is no text
    try:
        validate(documents.parse_json(text))
    except ValueError as error:
        raise UserError(f"record: {error}") from None
    path = Run.of(record).path(root)
    replace_file(path, text + "\n")
    return path


def keep(record: dict, root: Path) -> Path | None:
    """As `write`, but an interrupted or failed run never takes the place of a finished one (then None).

    A file in its place that is no record gives way, and is named.
    """
    path = Run.of(record).path(root)
    try:
        finished = read(path)["status"] in FINISHED
    except FileNotFoundError:
        finished = False
    except UserError as error:
        finished = False
        print(f"replaced: {error}", file=sys.stderr)
    return None if finished and record["status"] not in FINISHED else write(record, root)


def read(path: str | Path) -> dict:
    """The record in this file. Raises UserError, naming the file and the key that is wrong; FileNotFoundError."""
    record = documents.read_json(path)
    _check(record, f"{path}: record")
    return record


def read_all(root: Path, pattern: str = "*/*/*/*.json") -> Found:
    """Every record under `root` that fits the pattern, in order of their paths; none where the folder is missing.

    Hidden files are passed over: macOS and editors leave such beside others.
    """
    found = Found([], [])
    for path in find(Path(root), pattern, found.problems):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        try:
            record = read(path)
            place = Run.of(record).path(root)
            if place != path:
                raise UserError(f"{path}: record: identity: names another place, {place}")
            found.records.append(record)
        except FileNotFoundError:  # a link to nowhere, or it has just gone
            found.problems.append(UserError(f"{path} cannot be read: there is no such file"))
        except UserError as error:
            found.problems.append(error)
    return found


Problems = Iterator[tuple[str, str]]  # key, and what is wrong with it


def _clock(time: Mapping[str, float]) -> Problems:
    spent = sum(time[category] for category in CATEGORIES)
    tolerance = CLOCK_TOLERANCE * time["total"] + 1e-6
    if abs(spent - time["total"]) > tolerance:
        yield "time.total", f"{time['total']} s, but the categories add up to {spent:.6g} s"
    scored = time["total"] - sum(time[category] for category in FREE_CATEGORIES)
    if abs(scored - time["scored"]) > tolerance:
        yield (
            "time.scored",
            f"{time['scored']} s, but total less {' and '.join(FREE_CATEGORIES)} is {scored:.6g} s",
        )
    shared = time.get("shared", 0.0)
    if time["prior"] + shared > time["scored"] + tolerance:
        yield (
            "time.shared",
            f"{shared} s and the prior's {time['prior']} s are more than time.scored, {time['scored']} s",
        )


def _curve(curve: list[dict], last: float | None, oracle_best: float | None, **_: Any) -> Problems:
    """The scores are taken from the curve, whose points come one after the other."""
    values = [point["value"] for point in curve]
    best = max((value for value in values if value is not None), default=None)
    for earlier, later in itertools.pairwise(curve):
        if earlier["step"] >= later["step"] or earlier["seconds"] > later["seconds"]:
            yield "metrics.curve", f"step {later['step']} comes after step {earlier['step']}"
    if last is not None and last != (values[-1] if values else None):
        yield "metrics.last", f"{last} is not the last point of the curve"
    if oracle_best != best:
        yield "metrics.oracle_best", f"{oracle_best}, but the best point of the curve is {best}"
