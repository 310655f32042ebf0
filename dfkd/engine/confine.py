"""Confinement of this process by the kernel: what is not on the lists below does not exist for it.

Landlock (Linux 5.13 and later) takes rights from a thread for good, and from every thread and process it starts, in
whatever language. So `confine` comes first in a fresh interpreter, before numpy or torch start threads. This module
needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path

from dfkd.errors import UserError, shown

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _DROP_FROM_BOUND = 38, 22, 24

# Rights over files, by bit: execute 0, write 1, read 2, list 3, remove 4–5, make 6–12, refer 13 (version 2),
# truncate 14 (3), ioctl of devices 15 (5).
_EXECUTE, _WRITE, _READ, _LIST, _TRUNCATE, _IOCTL = (1 << bit for bit in (0, 1, 2, 3, 14, 15))
_OF_A_FILE = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
_LOOK = _EXECUTE | _READ | _LIST

_SYSTEM = (
    *("/bin", "/lib", "/lib32", "/lib64", "/sbin", "/usr", "/opt/cuda", "/opt/rocm", "/etc/alternatives", "/etc/fonts"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/nsswitch.conf"),
    *("/etc/passwd", "/etc/group", "/etc/hosts", "/etc/os-release", "/etc/OpenCL", "/etc/nvidia", "/proc", "/sys"),
    *("/dev/zero", "/dev/random", "/dev/urandom"),
)
# No /dev/shm: what is put there would outlive the run.
_DEVICES = ("/dev/null", "/dev/full", "/dev/dri", "/dev/kfd", "/dev/nvidia*", "/dev/dxg")
_BUNDLED = "sklearn/datasets/data"  # real data of one of our tasks, inside the environment


def isolation() -> str:
    """What keeps a method from real data on this machine: "landlock", else "audit-hook".

    `DFKD_ISOLATION=audit-hook` does without Landlock where there is one, `landlock` insists on it. Raises UserError for
    another word, and where there is none to insist on.
    """
    has = "landlock" if version() else "audit-hook"
    wanted = os.environ.get("DFKD_ISOLATION") or has
    if wanted not in ("landlock", "audit-hook"):
        raise UserError(f"DFKD_ISOLATION is landlock or audit-hook, unlike {shown(wanted)}")
    if wanted == "landlock" and has != wanted:
        raise UserError("DFKD_ISOLATION asks for landlock, which this system does not have")
    return wanted


def version() -> int:
    """The version of Landlock's interface that this kernel offers; 0 where there is none."""
    if sys.platform != "linux" or struct.calcsize("P") != 8:
        return 0
    return max(0, _call(_CREATE_RULESET, None, 0, 1))


def confine(
    read: Iterable[Path],
    write: Iterable[Path],
    deny: Iterable[Path],
    names: Iterable[Path] = (),
    private: Iterable[Path] = (),
) -> bool:
    """Leave this thread, and whatever it starts, the reading of `read` and of `environment()`, the writing of `write`.

    Nothing under `deny` can be opened, whatever contains it, and of a `private` folder only what is named on its own;
    under `names` names can be listed, and no more. False where the kernel cannot, and nothing has changed. Raises
    OSError where a list cannot be kept.
    """
    if not (has := version()):
        return False
    denied = [os.path.realpath(path) for path in deny]
    handled = (1 << min(16, 13 + (has > 1) + (has > 2) + (has > 4))) - 1
    attributes = struct.pack("QQQ", handled, 0b11, 0b11)[: 24 if has > 5 else 16 if has > 3 else 8]
    rules = _checked(_call(_CREATE_RULESET, attributes, len(attributes), 0), "create a Landlock ruleset")
    try:
        for path in map(os.path.realpath, write):
            if any(_below(other, path) or _below(path, other) for other in denied):
                raise OSError(f"{path} may not be written: it lies beside what must not be read")
            _allow(rules, path, handled)
        for found in (found for pattern in _DEVICES for found in glob(pattern)):
            _allow(rules, found, handled & (_LOOK | _WRITE | _IOCTL))
        for name in names:
            _allow(rules, os.path.realpath(name), _LIST)
        apart = [os.path.realpath(path) for path in private]
        for path in map(os.path.realpath, [*map(str, read), *environment()]):
            left_out = [*denied, *(other for other in apart if path == other or not _below(path, other))]
            for readable, rights in around([path], left_out):
                _allow(rules, readable, handled & rights)
        _checked(_prctl(_SET_NO_NEW_PRIVILEGES, 1), "give up new privileges")
        _checked(_call(_RESTRICT_SELF, rules, 0), "enter a Landlock ruleset")
    finally:
        os.close(rules)
    _drop_capabilities()
    _filter_calls()
    _prove(denied)
    return True


def environment() -> list[str]:
    """What any Python program with torch reads: interpreter, packages, system libraries and devices.

    Of packages also those of a user, or of a place that a `.pth` file names; not the project, which `read` has.
    """
    project = Path(__file__).resolve().parent.parent.parent
    packages = {path for path in sys.path if os.path.isdir(path) and Path(path).resolve() != project}
    prefixes = {sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    return [*filter(os.path.exists, (*sorted(prefixes | packages), *_SYSTEM))]


def bundled() -> list[str]:
    """The folders of real data inside this interpreter's packages."""
    packages = [entry for entry in sys.path if os.path.isdir(entry)]
    for prefix in {sys.prefix, sys.base_prefix, "/usr", "/usr/local"}:
        packages += glob(f"{prefix}/lib*/python3*/*-packages")
    return [found for entry in packages if os.path.isdir(found := os.path.join(entry, _BUNDLED))]


def around(paths: Iterable[Path | str], denied: list[str]) -> Iterator[tuple[str, int]]:
    """Each path with the rights it gives; one that contains a denied path is split into what it has beside it.

    Links are followed first, so that `lib64 → lib` lets nothing in again that `lib` leaves out.
    """
    waiting, seen = [*paths], set()
    while waiting:
        path = os.path.realpath(waiting.pop())
        if path in seen or any(_below(path, root) for root in denied):
            continue
        seen.add(path)
        if any(_below(root, path) for root in denied):
            yield path, _LIST  # names are no secret, and the import system asks for them
            # A link leads to a place that is listed on its own or is nobody's business.
            waiting += [entry.path for entry in os.scandir(path) if not entry.is_symlink()]
        else:
            yield path, _LOOK


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it is not there, so there is nothing to allow
    try:
        rights &= -1 if os.path.isdir(path) else _OF_A_FILE
        if rights:
            _checked(_call(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, descriptor), 0), f"allow {path}")
    finally:
        os.close(descriptor)


def _drop_capabilities() -> None:
    """Root would read the maps of other processes and the kernel's memory; that it may open files of others is left."""
    kept = 0b10  # dac_override
    for capability in range(64):
        if not kept >> capability & 1:
            _prctl(_DROP_FROM_BOUND, capability)
    names, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _checked(_library().capget(names, rights), "read capabilities")
    rights[:] = [rights[0] & kept, rights[1] & kept, 0, 0, 0, 0]
    _checked(_library().capset(names, rights), "drop capabilities")


def _prove(denied: Iterable[str]) -> None:
    """Raises OSError if the first file of a denied folder can be opened after all."""
    for root in denied:
        for folder, _, names in os.walk(root):
            for name in names[:1]:
                try:
                    os.close(os.open(os.path.join(folder, name), os.O_RDONLY))
                except OSError:
                    continue
                raise OSError(f"{folder} can still be read under Landlock")


# What Landlock leaves open, by number of the system call. Refused: what may outlive the run (shmget, semget, msgget,
# mq_open, add_key, keyctl, io_uring_setup, and a process group of one's own, setpgid, setsid), connect, by which a
# daemon of the user's would do what this process may not, timer_create, which wakes a process that is held, and
# ioprio_set and setpriority. Without effect, for programs end where they are refused: chmod, chown, utime and setxattr
# in all their forms, which can leave notes on files that may only be read. Then the number of clone.
_CALLS = {
    "x86_64": (
        *(0xC000003E, 41, (29, 64, 68, 240, 248, 250, 425, 109, 112, 42, 222, 251, 141)),
        (90, 91, 92, 93, 94, 132, 188, 189, 190, 235, 260, 261, 268, 452, 463, 469),
        56,
    ),
    "aarch64": (
        *(0xC00000B7, 198, (194, 190, 186, 180, 217, 219, 425, 154, 157, 203, 107, 30, 140)),
        (5, 6, 7, 52, 53, 54, 55, 452, 463, 469),
        220,
    ),
}
_IGNORED, _REFUSED, _ALLOWED = 0x00050000, 0x00050000 | 13, 0x7FFF0000  # the second is EACCES
_UNKNOWN = 0x00050000 | 38  # ENOSYS, upon which libraries take clone for clone3, whose arguments lie in memory
_CLONE3, _SIGCHLD = 435, 17
# Calls that hang on one argument: their numbers on the two architectures, which argument, its values, what is answered
# to those, and to others. utimensat without times makes a file, so whoever gets an error goes on and makes it. fcntl's
# F_SETSIG and attributes of files by ioctl are refused, limits, scheduling and processors of another, and pairs of
# sockets that are no streams, by which a datagram could be sent to anybody.
_BY_ARGUMENT = (
    (280, 88, 2, (0,), _REFUSED, _IGNORED),
    (72, 25, 1, (10,), _REFUSED, _ALLOWED),
    (16, 29, 1, (0x40086602, 0x40046602, 0x40087602, 0x401C5820), _REFUSED, _ALLOWED),
    (302, 261, 0, (0,), _ALLOWED, _REFUSED),
    (53, 199, 1, (0x1, 0x801, 0x80001, 0x80801), _ALLOWED, _REFUSED),
    (203, 122, 0, (0,), _ALLOWED, _REFUSED),
    (142, 118, 0, (0,), _ALLOWED, _REFUSED),
    (144, 119, 0, (0,), _ALLOWED, _REFUSED),
    (314, 274, 0, (0,), _ALLOWED, _REFUSED),
)


def _filter_calls() -> None:
    """Filter system calls by seccomp; where it cannot, nothing. Of sockets only streams within the machine are left."""
    if platform.machine() not in _CALLS:
        return
    architecture, socket, refusals, idle, clone = _CALLS[platform.machine()]
    load, equal, least, mask, end = 0x20, 0x15, 0x35, 0x54, 0x06  # BPF; comparisons skip so many lines if so, if not
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, _REFUSED)]
    code += [(load, 0, 0, 0), (least, 0, 1, 0x40000000), (end, 0, 0, _REFUSED)]  # x32's numbers for the same calls
    for numbers, answer in ((refusals, _REFUSED), (idle, _IGNORED), ((_CLONE3,), _UNKNOWN)):
        code += [line for number in numbers for line in ((equal, 0, 1, number), (end, 0, 0, answer))]
    # A child whose end is told by another signal than SIGCHLD, such as SIGCONT, would wake a process that is held.
    code += [(equal, 0, 6, clone), (load, 0, 0, 16), (mask, 0, 0, 255), (equal, 1, 0, 0), (equal, 0, 1, _SIGCHLD)]
    code += [(end, 0, 0, _ALLOWED), (end, 0, 0, _REFUSED)]
    for *both, argument, values, answer, other in _BY_ARGUMENT:
        told = [line for value in values for line in ((equal, 0, 1, value), (end, 0, 0, answer))]
        code += [(equal, 0, len(told) + 2, both[platform.machine() == "aarch64"]), (load, 0, 0, 16 + 8 * argument)]
        code += [*told, (end, 0, 0, other)]
    code += [(equal, 1, 0, socket), (end, 0, 0, _ALLOWED)]
    code += [(load, 0, 0, 16), (equal, 1, 0, 1), (end, 0, 0, _REFUSED)]  # AF_UNIX
    code += [(load, 0, 0, 24), (mask, 0, 0, 15), (equal, 0, 1, 2), (end, 0, 0, _REFUSED)]  # SOCK_DGRAM
    code += [(end, 0, 0, _ALLOWED)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    _prctl(_SET_SECCOMP, 2, ctypes.byref(_Program(len(code), ctypes.addressof(program))))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _call(number: int, *arguments: int | bytes | None) -> int:
    plain = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _library().syscall(ctypes.c_long(number), *plain)


def _prctl(option: int, value: int, pointer: object = None) -> int:
    return _library().prctl(option, ctypes.c_ulong(value), pointer, None, None)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"cannot {what}: {os.strerror(ctypes.get_errno())}")
    return result
