"""The student's optimizers and learning-rate schedules: a closed list, and what each takes. Torch-free.

A recipe is data: looked up in mmengine's registry alone, a type could be any name that can be imported and called.
"""

from __future__ import annotations

from typing import Any


def mapping(required: str = "", /, **properties: Any) -> dict[str, Any]:
    """The JSON schema of a mapping with these keys and no others; `required` lists, by spaces, those it must have."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


FLAG = {"type": "boolean"}
POSITIVE = {"type": "number", "exclusiveMinimum": 0}
NOT_NEGATIVE = {"type": "number", "minimum": 0}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_BELOW_ONE = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
_BETAS = {"type": "array", "items": _BELOW_ONE, "minItems": 2, "maxItems": 2}
_COUNT = {"type": "integer", "minimum": 1}
COUNTS = {"type": "array", "items": _COUNT, "minItems": 1}
_TYPE = {"type": "string"}
_PER = {"type": "string", "enum": ["step", "round"]}


def _optimizer(**arguments: Any) -> dict[str, Any]:
    return mapping("type lr", type=_TYPE, lr=NOT_NEGATIVE, weight_decay=NOT_NEGATIVE, **arguments)


def _schedule(required: str = "", /, **arguments: Any) -> dict[str, Any]:
    return mapping(f"type per {required}", type=_TYPE, per=_PER, **arguments)


_ADAM = _optimizer(betas=_BETAS, eps=POSITIVE, amsgrad=FLAG, fused=FLAG)
_NESTEROV = {
    "if": {"required": ["nesterov"], "properties": {"nesterov": {"const": True}}},
    "then": {"required": ["momentum"], "properties": {"momentum": {"exclusiveMinimum": 0}}},
}
OPTIMIZERS = {
    "SGD": _optimizer(momentum=SHARE, nesterov=FLAG, fused=FLAG) | _NESTEROV,
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "RMSprop": _optimizer(alpha=SHARE, eps=POSITIVE, momentum=SHARE, centered=FLAG),
}
SCHEDULES = {
    "CosineAnnealingLR": _schedule(eta_min=NOT_NEGATIVE),  # it ends with the run, whatever its length
    "StepLR": _schedule("step_size", step_size=_COUNT, gamma=SHARE),
    "MultiStepLR": _schedule("milestones", milestones=COUNTS, gamma=SHARE),
    "ExponentialLR": _schedule("gamma", gamma=SHARE),
    "PolyLR": _schedule("power", power=POSITIVE, eta_min=NOT_NEGATIVE),
    "ConstantLR": _schedule("factor", factor=SHARE),
}
PARTS = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}


def one_of(types: dict[str, Any], key: str = "type") -> dict[str, Any]:
    """The JSON schema of a mapping whose `type` decides which it is."""
    cases = ({"if": {"required": [key], "properties": {key: {"const": name}}}, "then": types[name]} for name in types)
    return {
        "type": "object",
        "required": [key],
        "properties": {key: {"type": "string", "enum": list(types)}},
        "allOf": list(cases),
    }
