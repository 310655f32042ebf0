"""The recipe by which a teacher is trained. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dfkd import documents
from dfkd.names import NAME
from dfkd.optimizers import COUNTS, NOT_NEGATIVE, POSITIVE, SHARE, mapping, one_of

_ALWAYS = "epochs batch lr momentum weight_decay schedule"
_ENCODER = {
    "encoder": {"type": "string", "pattern": NAME},  # the weights file from which all but the head starts
    "encoder_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    # The numbers that the task's classes have in that file, from whose rows the head starts too.
    "encoder_classes": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
}
_KEYS = {
    "epochs": {"type": "integer", "minimum": 1, "maximum": 10**9},
    "batch": {"type": "integer", "minimum": 2, "maximum": 2**20},
    "lr": POSITIVE,
    "momentum": SHARE,
    "weight_decay": NOT_NEGATIVE,
    "schedule": {"type": "string"},
    "focal": NOT_NEGATIVE,  # γ of the focal loss; without it the cross-entropy
    **_ENCODER,
}
SCHEMA = one_of(
    {
        "cosine": mapping(_ALWAYS, **_KEYS),
        "multistep": mapping(f"{_ALWAYS} milestones gamma", **_KEYS, milestones=COUNTS, gamma=SHARE),
        "none": mapping(f"schedule {' '.join(_ENCODER)}", schedule=_KEYS["schedule"], **_ENCODER),  # not trained here
    },
    "schedule",
)


def check(recipe: Mapping[str, Any]) -> None:
    """Raise UserError for a missing or unknown key and for a value that cannot be meant."""
    documents.check(recipe, SCHEMA, "a teacher's recipe")
