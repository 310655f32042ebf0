"""The machine a run is on: device, memory, versions, commit."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from dfkd import __version__
from dfkd.checkout import git
from dfkd.errors import UserError


def device_of(name: str | None) -> torch.device:
    """The device of `--device`; by default CUDA where there is one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        # It computes, gives the result back (which `meta` does not), and has random streams.
        torch.rand(1, device=device, generator=torch.Generator(device)).item()
    except Exception as error:  # of whatever kind a backend that is not there raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"--device {name} cannot be used: {reason}") from None
    return device


def wait(device: torch.device) -> None:
    """Until the device has done what it was given: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allow_tf32(precision: str) -> None:
    """Whether matrix products may be rounded to TF32 in this process from now on."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def out_of_memory(error: Exception) -> bool:
    """Whether memory, the host's or the device's, could not be had; a CPU says so by a plain RuntimeError."""
    said = ("allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )


def hardware(device: torch.device, precision: str) -> dict:
    """The record's hardware: a class within which times may be compared, and details."""
    suffix = "" if precision == "fp32" else f", {precision}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        details = {"memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
        return {"class": torch.cuda.get_device_name(device) + suffix, "details": details}
    # One name may stand for processors of several generations, half as fast without AVX-512 as with it.
    told = _told()
    processor = told.get("model name") or platform.processor() or platform.machine() or "CPU"
    model = f"{processor} ({torch.backends.cpu.get_cpu_capability()})"
    threads = torch.get_num_threads()
    counted = f"{threads} thread{'s' if threads > 1 else ''}"
    # Clouds call several generations by one name; these numbers tell them apart.
    generation = {name: value for name, value in told.items() if name in ("cpu family", "model", "stepping")}
    details = {"cpus": os.cpu_count(), "threads": threads, **generation}
    return {"class": f"{model}, {counted}{suffix}", "details": details}


def _told() -> dict[str, str]:
    """What Linux says of the first processor, by name."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


class Memory:
    """Peak bytes of a run: on CUDA what its allocator held, on a CPU resident memory above the imported process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # Linux: the high-water mark starts anew
        except OSError:
            pass
        self._start = psutil.Process().memory_info().rss

    def peak(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return max(0, _high_water() - self._start)


class Activity:
    """What keeps the machine's processors busy from now on: this process with its children, and all else."""

    def __init__(self) -> None:
        self._start = self._counters()

    @staticmethod
    def _counters() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        # Those stolen by a hypervisor are others' too.
        busy = sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
        return time.perf_counter(), sum(os.times()[:4]), busy

    def measured(self) -> tuple[float, float]:
        """Processor seconds of this process and of its children that have ended, and how many processors all else
        kept busy, on average."""
        wall, own, busy = (now - then for now, then in zip(self._counters(), self._start, strict=True))
        return own, max(0.0, busy - own) / max(wall, 1e-9)


def _high_water() -> int:
    """The most bytes that were ever resident; psutil knows it on Windows alone."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on."""
    found = {"python": platform.python_version(), "dfkd": __version__}
    for package in ("torch", "mmengine-lite", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of the project, with `+` where the working tree differs; None outside a checkout."""
    code = ("dfkd", "methods", "baselines", "benchmarks")
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "HEAD").strip() + ("+" if changed else "")
    except UserError:
        return None
