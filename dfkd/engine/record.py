"""What a record says of a run: facts gathered before it starts, and its measurements as they stand."""

from __future__ import annotations

import datetime
import hashlib
import platform
from dataclasses import dataclass, field

import torch

from dfkd import catalog, records
from dfkd.engine import machine
from dfkd.tables.resolve import Resolved
from dfkd.tasks import store

NO_TIME = dict.fromkeys((*records.CATEGORIES, "scored", "total"), 0.0) | {"resumes": 0}


def work_name(
    resolved: Resolved,
    card: dict,
    manifest: dict,
    device: torch.device,
    prior: dict | None,
    harness: str | None = None,
) -> str:
    """Where a run works, below the work folder. Of another configuration, code, data, teacher, prior, kind of device
    or precision, or compiled, it is another place, so nothing is mixed up. `harness` is the digest of its code, by
    default of the present one."""
    harness = harness or catalog.harness_digest()
    parts: tuple[str, ...] = (resolved.digest, resolved.entry.digest, harness, store.digest(manifest))
    parts += (str(card["digest"]), device.type, resolved.precision, *((prior["digest"],) if prior else ()))
    parts += ("compiled",) if resolved.compiled else ()
    return f"{resolved.run.name}/{hashlib.sha256(''.join(parts).encode()).hexdigest()[:12]}"


@dataclass
class Measured:
    """What a run comes to, filled in as it goes on."""

    status: str = "ok"
    error: str | None = None
    curve: list[dict] = field(default_factory=list)
    diagnostics: dict | None = None
    end: dict = field(default_factory=dict)  # the worker's last message
    time: dict | None = None  # by the harness's clock
    predicted: float | None = None  # seconds
    harness_memory: int = 0
    processor_seconds: float = 0.0  # of harness and worker
    others: float = 0.0  # processors that all else kept busy, on average
    isolation: str = "audit-hook"


class Facts:
    """What is known of a run before it starts."""

    def __init__(
        self, resolved: Resolved, card: dict | None, manifest: dict, device: torch.device, prior: dict | None
    ) -> None:
        self.resolved, self._prior = resolved, prior
        self.card = card or dict.fromkeys(("digest", "origin", "accuracy"))  # of a teacher that is not there yet
        self.data = {"digest": store.digest(manifest), "changed": manifest.get("changed") or None}
        self.data |= {key: manifest[key] for key in ("test_changed", "subset") if key in manifest}
        self.code = {"method": resolved.entry.digest, "harness": catalog.harness_digest()}
        platform.processor()  # numpy and h5py ask for it when imported, which starts a process the first time
        self.hardware = machine.hardware(device, resolved.precision)
        self.versions, self.commit = machine.versions(), machine.commit()
        self.work = work_name(resolved, self.card, manifest, device, prior)

    def prior(self, measured: Measured) -> dict:
        """What the method knew besides the teacher, and what that cost to train (0 where it is not known)."""
        kind = measured.end.get("prior") or self.resolved.entry.prior
        card = self._prior if kind == catalog.PUBLIC or "diffusion" in kind else None
        facts = {key: card and card[key] for key in ("name", "trained_on", "digest", "origin")}
        return {"kind": kind, **facts, "seconds": card["seconds"] if card and kind != catalog.PUBLIC else 0.0}

    def record(self, measured: Measured) -> dict:
        """The record of the run as it stands."""
        end, resolved, card, curve = measured.end, self.resolved, self.card, measured.curve
        counted = end.get("progress", {})
        values = [point["value"] for point in curve]
        return {
            "schema": records.VERSION,
            "status": measured.status,
            "error": measured.error,
            "work": self.work,
            "note": resolved.note or None,
            "custom": resolved.custom,
            "reference": resolved.entry.reference,
            "identity": resolved.run._asdict(),
            "metrics": {
                "name": resolved.metric.name,
                "last": values[-1] if values and measured.status == "ok" else None,
                "oracle_best": max(values, default=None),
                "teacher": card["accuracy"],
                "curve": curve,
            },
            "time": (measured.time or NO_TIME)
            | {"shared": end.get("shared", 0.0), "predicted": measured.predicted and round(measured.predicted, 1)},
            "cost": {
                "images_synthesised": counted.get("images_synthesised", 0),
                "student_steps": counted.get("student_steps", 0),
                "teacher_forwards": end.get("teacher_images", 0),
                "peak_memory_bytes": end.get("peak", 0),
                "harness_memory_bytes": measured.harness_memory,
                "processor_seconds": round(measured.processor_seconds, 2),
            },
            "prior": self.prior(measured),
            "diagnostics": measured.diagnostics,
            "report": end.get("report", {}),
            "provenance": {
                "code": {**self.code, "external": resolved.entry.external},
                "config": resolved.digest,
                "data": self.data,
                "teacher": {key: card[key] for key in ("digest", "origin", "accuracy")},
                "isolation": measured.isolation,
                "commit": self.commit,
                "versions": self.versions,
                "hardware": self.hardware,
                "others": round(measured.others, 2),
                "precision": resolved.precision,
                "compiled": resolved.compiled,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
            "config": {**resolved.config, "args": {**resolved.entry.arguments, **resolved.config["args"]}},
        }
