"""The data-free guard: while it is sealed, no code of this process can open real data.

A process-wide audit hook sees every `open` the interpreter makes, by whatever library. The harness loads what the
evaluator needs before it seals the guard, so nothing has to be lifted while a method is on the stack: from sealing to
the end of the run there is no exception to find. A refusal is remembered, so a method that swallows the error fails
the run all the same.

What it is not: a sandbox. Native code that opens files without telling the interpreter is outside the reach of audit
hooks; torch's entries that do so are closed by name, and starting another process is refused.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import _posixsubprocess
except ImportError:  # Windows
    _posixsubprocess = None


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
        self.sealed = False
        self.violations: list[str] = []
        self._checking = threading.local()

    def install(self) -> None:
        """Add the audit hook. It stays for the life of the process and does nothing until sealed."""
        if not self.installed:
            self.installed = True
            sys.addaudithook(self._audit)

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
            return False
        return (status.st_dev, status.st_ino) in self.inodes

    def _refuse(self, message: str) -> None:
        self.violations.append(message)
        raise DataFreeViolation(message)

    def check(self) -> None:
        """Raise if anything was refused since sealing, even where the method swallowed the error."""
        if self.violations:
            raise DataFreeViolation(self.violations[0])

    @contextmanager
    def seal(self, *roots: Path | str) -> Iterator[None]:
        """Refuse, inside, to open anything under these folders and scikit-learn's bundled digits.

        Raises DataFreeViolation on leaving if anything was refused inside.
        """
        self.install()
        self.roots = tuple(os.path.realpath(root) for root in roots)
        self.inodes = frozenset(_inodes(self.roots))
        self.violations = []
        self.sealed = True
        restore = _close_native_openers(self._refuse)
        try:
            yield
        finally:
            self.sealed = False
            restore()
        self.check()


def _inodes(roots: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """Identity of every data file, so that a hard link elsewhere is recognised."""
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                status = os.stat(os.path.join(folder, name))
                yield status.st_dev, status.st_ino


def _close_native_openers(refuse: Callable[[str], None]) -> Callable[[], None]:
    """What opens files or starts processes in C without an audit event; returns what undoes the closing."""
    closed: list[tuple[object, str]] = [(_posixsubprocess, "fork_exec")] if _posixsubprocess else []
    torch = sys.modules.get("torch")
    if torch is not None:
        closed += [(torch, "from_file"), (torch.UntypedStorage, "from_file")]
    originals = [(owner, name, vars(owner).get(name)) for owner, name in closed]

    def refused(*arguments: object, **keywords: object) -> None:
        refuse("a data-free run may not map files or start processes through native code")

    for owner, name, _ in originals:
        setattr(owner, name, refused)

    def restore() -> None:
        for owner, name, original in originals:
            if original is None:  # inherited: uncover it again
                delattr(owner, name)
            else:
                setattr(owner, name, original)

    return restore


guard = _Guard()
