"""What a record says of a run: facts gathered before it starts, and its measurements as they stand."""

from __future__ import annotations

import datetime
import hashlib
import platform
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dfkd import catalog, records
from dfkd.engine import machine
from dfkd.engine.clock import Clock
from dfkd.tables.definition import PUBLIC
from dfkd.tables.resolve import Resolved
from dfkd.tasks import store

if TYPE_CHECKING:
    from dfkd.engine.loop import StageLoop


def work_name(resolved: Resolved, card: dict, manifest: dict, device: torch.device, prior: dict | None) -> str:
    """Where a run works, below the work folder. Of another configuration, code, data, teacher, prior or kind of device
    it is another place, so nothing is mixed up."""
    parts = (resolved.digest, resolved.entry.digest, catalog.harness_digest(), store.digest(manifest))
    parts += (str(card["digest"]), device.type, *((prior["digest"],) if prior else ()))
    return f"{resolved.run.name}/{hashlib.sha256(''.join(parts).encode()).hexdigest()[:12]}"


@dataclass
class Measured:
    """What a run comes to, filled in as it goes on."""

    loop: StageLoop | None = None
    status: str = "ok"
    error: str | None = None
    prior: str | None = None
    report: dict[str, float] = field(default_factory=dict)
    diagnostics: dict | None = None
    peak_memory: int | None = None


class Facts:
    """What is known of a run before it starts; later, under the sealed guard, no process may be started."""

    def __init__(
        self, resolved: Resolved, card: dict | None, manifest: dict, device: torch.device, prior: dict | None
    ) -> None:
        self.resolved, self._prior = resolved, prior
        self.card = card or dict.fromkeys(("digest", "origin", "accuracy"))  # of a teacher that is not there yet
        self.data = {"digest": store.digest(manifest), "changed": manifest.get("changed") or None}
        self.data |= {key: manifest[key] for key in ("test_changed", "subset") if key in manifest}
        self.code = {"method": resolved.entry.digest, "harness": catalog.harness_digest()}
        platform.processor()  # numpy and h5py ask for it when imported, which starts a process the first time
        self.hardware, self.versions, self.commit = machine.hardware(device), machine.versions(), machine.commit()
        self.work = work_name(resolved, self.card, manifest, device, prior)

    def prior(self, measured: Measured) -> dict:
        """What the method knew besides the teacher, and what that cost to train (0 where it is not known)."""
        kind = measured.loop.model.method.prior if measured.loop else measured.prior or self.resolved.entry.prior
        card = self._prior if kind == PUBLIC or "diffusion" in kind else None
        facts = {key: card and card[key] for key in ("name", "trained_on", "digest", "origin")}
        return {"kind": kind, **facts, "seconds": card["seconds"] if card and kind != PUBLIC else 0.0}

    def record(self, measured: Measured, clock: Clock, memory: machine.Memory) -> dict:
        """The record of the run as it stands."""
        loop, resolved, card = measured.loop, self.resolved, self.card
        curve = loop.curve if loop else []
        values = [point["value"] for point in curve]
        peak = memory.peak() if measured.peak_memory is None else measured.peak_memory
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
            "time": clock.report() | {"shared": round(loop.shared_seconds if loop else 0.0, 4)},
            "cost": {
                "images_synthesised": loop.progress.images_synthesised if loop else 0,
                "student_steps": loop.progress.student_steps if loop else 0,
                "teacher_forwards": loop.model.ctx.teacher.images_seen if loop else 0,
                "peak_memory_bytes": peak,
            },
            "prior": self.prior(measured),
            "diagnostics": measured.diagnostics,
            "report": measured.report,
            "provenance": {
                "code": {**self.code, "external": resolved.entry.external},
                "config": resolved.digest,
                "data": self.data,
                "teacher": {key: card[key] for key in ("digest", "origin", "accuracy")},
                "commit": self.commit,
                "versions": self.versions,
                "hardware": self.hardware,
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            },
            "config": {**resolved.config, "args": {**resolved.entry.arguments, **resolved.config["args"]}},
        }
