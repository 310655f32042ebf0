"""The house rules that a reader relies on: one direction of imports, no circle, functions that fit on a screen."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from dfkd.paths import CODE, METHODS, ROOT

LONGEST = 60  # lines of a function
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "bench.py", *(path for folder in (CODE, *METHODS) for path in folder.rglob("*.py")))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(node: ast.AST, files: dict[str, Path]) -> set[str]:
    """The files that a file asks for when it runs, inside its functions too; not what only a type checker reads."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom) and child.module:
            below = [f"{child.module}.{alias.name}" for alias in child.names]
            found |= {name if name in files else child.module for name in below} & files.keys()
        elif isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names} & files.keys()
        elif not is_for_types(child):
            found |= imports(child, files)
    return found


GRAPH = {name: imports(tree, FILES) for name, tree in TREES.items()}


def test_no_two_files_import_each_other():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" ← ".join(error.args[1]))


def test_a_circle_would_be_seen():
    with pytest.raises(CycleError):
        TopologicalSorter(GRAPH | {"dfkd.errors": {"dfkd.session"}}).prepare()


def test_imports_have_one_direction():
    floors = {"dfkd": 0, "methods": 1, "baselines": 1, "bench": 2}
    for name, asked in GRAPH.items():
        assert not [other for other in asked if floors[other.split(".")[0]] > floors[name.split(".")[0]]], name


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_function_is_longer_than_a_screen(name):
    functions = (node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    assert not {name: lines for name, lines in long.items() if lines > LONGEST}


def test_the_kept_digest_of_the_code_is_that_of_its_bytes(tmp_path, monkeypatch):
    """Believed for the same bytes alone, and made anew where what is kept is damaged."""
    from dfkd import catalog, paths

    code, work = tmp_path / "code", tmp_path / "work"
    code.mkdir()
    (code / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(paths, "CODE", code)
    monkeypatch.setattr(paths, "WORK", work)
    asked = catalog.harness_digest.__wrapped__
    first = asked()
    kept = paths.harness().read_text()
    assert first == catalog.code_digest(code / "a.py") and kept.endswith(f" {first}\n")
    paths.harness().write_text(kept.replace(first, "0" * 64))
    assert asked() == "0" * 64  # it was not worked out again
    (code / "a.py").write_text("x = 2\n")
    assert asked() == catalog.code_digest(code / "a.py") != first
    paths.harness().write_bytes(b"\xff")
    assert asked() == catalog.code_digest(code / "a.py")
