"""Every text file of the project is UTF-8, whatever the locale says."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("dfkd", "methods", "baselines")
SOURCES = [ROOT / "bench.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


def in_the_locale(call: ast.Call) -> bool:
    """Whether a call reads or writes text in the encoding of the locale.

    The linter knows `open` and paths whose type it can infer; this knows every attribute of those names.
    """
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name in ("read_text", "write_text"):
        return True
    text = keywords.get("text", keywords.get("universal_newlines"))
    if text is not None and getattr(text, "value", None) is True:
        return True
    if isinstance(call.func, ast.Name) and name == "open":
        mode = keywords.get("mode", call.args[1] if len(call.args) > 1 else None)
        return mode is None or "b" not in getattr(mode, "value", "b")
    return False


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_read_or_written_in_the_locales_encoding(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and in_the_locale(node)]
    assert not found, f"{path}: lines {found}"


@pytest.mark.parametrize("verb", [["list"], ["plan"], ["leaderboard", "--check"]], ids=lambda verb: verb[0])
def test_verbs_say_the_same_in_a_c_locale_without_utf8_mode(verb):
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    outcomes = []
    for extra in ({"LC_ALL": "C", "PYTHONUTF8": "0"}, {"PYTHONUTF8": "1"}):
        command = [sys.executable, "bench.py", *verb]
        done = subprocess.run(command, cwd=ROOT, env={**plain, **extra}, capture_output=True)
        assert b"Traceback" not in done.stderr
        ascii_only = done.stdout.decode("utf-8").encode("ascii", "backslashreplace")
        outcomes.append((done.returncode, ascii_only))
    assert outcomes[0][0] == outcomes[1][0] == 0
    if verb != ["list"]:  # whose columns are padded
        assert outcomes[0] == outcomes[1]
