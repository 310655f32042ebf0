"""A method from outside: what lies beside its file can be imported, and is part of its digest."""

from __future__ import annotations

import pytest

from dfkd import catalog
from dfkd.errors import UserError
from dfkd.tables.resolve import resolve
from tests.conftest import PAIR

METHOD = """
from dfkd.engine.method import METHODS, Method
{statement}

@METHODS.register_module("guest", force=True)
class Guest({base}):
    def synthesize(self, ctx):
        return {call}(ctx)
"""
HELPER = """
import torch
from dataclasses import dataclass
from dfkd.engine.method import Method
from dfkd.synthesis.buffer import Samples

@dataclass(eq=False)
class Base(Method):
    prior = "class names"

    scale: float = 1.0

def noise(ctx):
    shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)
    return Samples(torch.rand(shape, generator=ctx.rng("noise")))
"""
# By the statement: how the helper is called, where it lies. Names are of one test each: a module is imported once.
WAYS = {
    "by name": ("from helper_a import noise", "noise", "helper_a.py"),
    "as a module": ("import helper_b", "helper_b.noise", "helper_b.py"),
    "relatively": ("from .helper_c import noise", "noise", "helper_c.py"),
    "relatively, as a module": ("from . import helper_d", "helper_d.noise", "helper_d.py"),
    "from a package": ("from helper_e.parts import noise", "noise", "helper_e/parts.py"),
    "a package": ("import helper_f", "helper_f.noise", "helper_f/__init__.py"),
}


@pytest.fixture
def guest(tmp_path, tiny):
    """guest(way, base, helper): the cell of a method with a helper beside it, and the helper's file."""

    def make(way: str, base: str = "Method", helper: str = HELPER, folder: str = "here"):
        statement, call, place = WAYS[way]
        method, beside = tmp_path / folder / "guest.py", tmp_path / folder / place
        beside.parent.mkdir(parents=True, exist_ok=True)
        method.write_text(METHOD.format(statement=statement, base=base, call=call))
        beside.write_text(helper)
        return tiny("guest", extra=str(method)), beside

    return make


@pytest.mark.parametrize("way", WAYS)
def test_a_neighbour_is_imported_and_in_the_digest(way, guest, execute):
    cell, helper = guest(way)
    before = cell.entry.digest
    assert execute(cell)["provenance"]["code"]["method"] == before
    helper.write_text(HELPER + "\n# words\n")
    assert cell.entry.digest == before
    helper.write_text(HELPER + "\nNEW = 1\n")
    assert cell.entry.digest != before


def test_so_is_a_neighbour_s_neighbour_and_nothing_else(guest):
    cell, helper = guest("by name", helper="from further import x\nimport helper_a, os, guest\n")
    (helper.parent / "further.py").write_text("x = 1\n")
    (helper.parent / "os.py").write_text("")  # a file of that name is not what `import os` gives, but it may as well be
    (helper.parent / "unused.py").write_text("")
    names = {path.name for path in catalog._with_imports(cell.entry.path)}
    assert names == {"guest.py", "helper_a.py", "further.py", "os.py"}


def test_a_base_beside_it_says_what_the_method_knows_and_takes(guest):
    """Read without importing, as of a base in `methods/`; two files that import each other come to an end."""
    cell, _ = guest("by name", helper=HELPER + "\nfrom guest import Guest\n")
    path = cell.entry.path
    path.write_text(METHOD.format(statement="from helper_a import Base, noise", base="Base", call="noise"))
    entry = catalog.entry("guest", str(path))
    assert (entry.prior, entry.arguments) == ("class names", {"scale": 1.0})
    cell = resolve("digits", "quick", "guest", PAIR, 0, ["scale=2.0"], str(path))
    assert cell.config["args"] == {"scale": 2.0}


def test_a_neighbour_takes_no_library_s_place(guest, execute):
    """The folder comes last on the path: a `methods.py` or `PIL.py` there harms nobody."""
    cell, helper = guest("by name", helper=HELPER, folder="shadow")
    for name in ("methods", "sklearn"):
        (helper.parent / f"{name}.py").write_text("raise AssertionError('imported')")
    cell.entry.path.write_text(cell.entry.path.read_text() + "\nimport methods.template, sklearn\n")
    assert execute(cell)["status"] == "ok"


def test_a_neighbour_that_is_no_python_is_named(guest):
    with pytest.raises(UserError, match=r"helper_a\.py cannot be read as Python"):
        _ = guest("by name", helper="class (")[0].entry.digest


def test_a_byte_order_mark_is_no_part_of_the_code(guest):
    """Editors of Windows write one, and Python reads over it."""
    cell, helper = guest("by name")
    before = cell.entry.digest
    for path in (cell.entry.path, helper):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert catalog.entry("guest", str(cell.entry.path)).digest == before


def test_in_the_repository_the_digest_is_over_method_files_alone():
    names = {path.name for path in catalog._with_imports(catalog.entry("ssdkd").path)}
    assert names == {"ssdkd.py", "fast.py"}
