"""The data-free guard of machines that have no Landlock: while it is sealed, Python opens no real data.

A process-wide audit hook sees every `open` the interpreter makes, by whatever library, and refuses other processes,
which would have no hook. A refusal is remembered, so a method that swallows the error fails the run all the same. It
is no sandbox: native code that opens files without telling the interpreter is out of its reach, and a record says that
this was all there was (`provenance.isolation`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class DataFreeViolation(RuntimeError):
    """Code tried to open real data, or a way around the guard, during a data-free run."""


# Packages whose bundled files are real data of one of our tasks.
_BUNDLED = (os.path.join("sklearn", "datasets", "data", "digits.csv.gz"),)
_PROCESS_EVENTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")
_RENAMING_EVENTS = ("os.link", "os.symlink", "os.rename")


class _Guard:
    def __init__(self) -> None:
        self.installed = False
        self.roots: tuple[str, ...] = ()
        self.inodes: frozenset[tuple[int, int]] = frozenset()
        self.names: frozenset[str] = frozenset()
        self.sealed = False
        self.violations: list[str] = []
        self._checking = threading.local()

    def _audit(self, event: str, arguments: tuple) -> None:
        if not self.sealed or getattr(self._checking, "active", False):
            return
        if event == "open":
            paths = arguments[:1]
        elif event in _RENAMING_EVENTS:
            paths = arguments[:2]
        elif event in _PROCESS_EVENTS:
            self._refuse(f"a data-free run may not start another process ({event})")
        else:
            return
        self._checking.active = True
        try:
            forbidden = next((str(path) for path in paths if self._is_data(path)), None)
        finally:
            self._checking.active = False
        if forbidden is not None:
            self._refuse(f"a data-free run may not open real data: {forbidden}")

    def _is_data(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):
            return False  # an open descriptor; what it refers to was checked when it was opened
        real = os.path.realpath(os.fsdecode(path))
        if real.endswith(_BUNDLED):
            return True
        if os.path.basename(real).endswith(("_images.npy", "_labels.npy")):
            return True  # also reached by a path relative to a directory's descriptor
        if os.path.basename(real) != "manifest.json" and any(
            real == root or real.startswith(root + os.sep) for root in self.roots
        ):
            return True
        try:
            status = os.stat(real)
        except OSError:
            # Not there from here: it may be meant relative to the descriptor of some folder above the data.
            return not os.path.isabs(os.fsdecode(path)) and os.path.basename(real) in self.names
        return (status.st_dev, status.st_ino) in self.inodes

    def _refuse(self, message: str) -> None:
        self.violations.append(message)
        raise DataFreeViolation(message)

    def check(self) -> None:
        """Raise if anything was refused since sealing, even where the method swallowed the error."""
        if self.sealed and self.violations:
            raise DataFreeViolation(self.violations[0])

    @contextmanager
    def seal(self, *roots: Path | str) -> Iterator[None]:
        """Refuse, inside, to open anything under these folders and scikit-learn's bundled digits.

        Raises DataFreeViolation on leaving if anything was refused inside.
        """
        if not self.installed:  # it stays for the life of the process and does nothing until sealed
            self.installed = True
            sys.addaudithook(self._audit)
        self.roots = tuple(os.path.realpath(root) for root in roots)
        files = dict(_files(self.roots))
        self.inodes, self.names = frozenset(files), frozenset((*files.values(), "digits.csv.gz"))
        self.violations = []
        self.sealed = True
        try:
            yield
            self.check()
        finally:
            self.sealed = False


def _files(roots: tuple[str, ...]) -> Iterator[tuple[tuple[int, int], str]]:
    """Identity of every data file, so that a hard link elsewhere is recognised, and its name."""
    for path in _paths(roots):
        with suppress(OSError):  # a dangling link
            status = os.stat(path)
            yield (status.st_dev, status.st_ino), os.path.basename(path)


def _paths(roots: tuple[str, ...]) -> Iterator[str]:
    for root in roots:
        for folder, _, names in os.walk(root):
            yield from (os.path.join(folder, name) for name in names if name != "manifest.json")
    for entry in map(os.path.abspath, sys.path):
        yield from (os.path.join(entry, bundled) for bundled in _BUNDLED)


guard = _Guard()
