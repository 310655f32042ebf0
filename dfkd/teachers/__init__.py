"""Teachers: their weights and cards; `training.py`, which alone imports torch at once, makes them.

A weights file is safetensors with the bare network's keys, and `mean` and `std` in its metadata. Students
of finished runs are kept in the same way. Nothing here opens data: arrays, or a function that measures, are
handed in by whoever may read them.
"""

from dfkd.teachers.cards import (
    SCHEMA,
    card_path,
    file_digest,
    find,
    given_folders,
    new_card,
    read_card,
    weights_folders,
    weights_name,
    write_card,
)
from dfkd.teachers.weights import adopt, load, load_foreign, save, spec_of

__all__ = [
    "SCHEMA",
    "adopt",
    "card_path",
    "file_digest",
    "find",
    "given_folders",
    "load",
    "load_foreign",
    "new_card",
    "read_card",
    "save",
    "spec_of",
    "weights_folders",
    "weights_name",
    "write_card",
]
