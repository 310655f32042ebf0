"""What can be known of a method without importing it (and so without torch): read from its syntax tree.

`list`, `plan`, `--help` and the check of `--set` keys use this; it also gives the digest by which a record is known
to be stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from dfkd import paths
from dfkd.errors import CannotWrite, UserError, named, shown, unknown
from dfkd.files import asked_once, find, replace_file, stamps
from dfkd.names import check_name
from dfkd.names import path as typed_path

# A value of each type that an argument may have.
EXAMPLES: dict[str, object] = {"int": 0, "float": 0.0, "bool": False, "str": "", "list": [], "tuple": ()}
_WANTED = "hyper-parameters are dataclass fields with literal defaults, None with a type such as `float | None`"
_METHOD = paths.CODE / "engine" / "method.py"
PUBLIC = "public images"  # the side information of a method that takes what the table's prior was trained on
PRIORS = ("none", "class names", "diffusion", PUBLIC)  # what a method may know besides the teacher


@dataclass(frozen=True)
class Entry:
    """A registered method: its name, where it stands, its declared prior, its hyper-parameters."""

    name: str
    path: Path
    prior: str
    reference: bool
    needs_data: bool
    cites: tuple[str, ...]
    summary: str
    arguments: dict[str, object] = field(hash=False)
    examples: dict[str, object] = field(hash=False)  # a value of each argument's type: its default, unless that is None

    @property
    def external(self) -> bool:
        """Whether the method comes from outside the repository (`--import`)."""
        return self.path.parent not in paths.METHODS

    @property
    def digest(self) -> str:
        """sha256 over the code of its file and of those it imports (see `_with_imports`)."""
        return code_digest(*_with_imports(self.path))


@asked_once
def entries(extra: str | None = None) -> dict[str, Entry]:
    """Every registered method by name; `extra` is what `--import` names, a path or a module.

    Raises UserError for a file that cannot be read or two methods of one name.
    """
    more = [] if extra is None else [locate(extra)]
    return dict(_entries(stamps([*files(), *more])))


@functools.lru_cache(maxsize=8)
def _entries(stamped: tuple) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for path, *_ in stamped:
        for entry in _read(path):
            if entry.name in found and found[entry.name].path != path:
                raise UserError(f"method {entry.name!r} is registered in both {found[entry.name].path} and {path}")
            found[entry.name] = entry
    return found


def files() -> list[Path]:
    """The repository's method files."""
    return [path for folder in paths.METHODS for path in find(folder, "[!.]*.py")]


def entry(name: str, extra: str | None = None) -> Entry:
    return named("method", name, entries(extra))


def locate(name: str) -> Path:
    """The file of `--import NAME`: a path, or a module on the search path. Nothing is imported, packages neither."""
    try:
        path = typed_path(name)
    except UserError as error:
        raise UserError(f"--import: {error}") from None
    if path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise UserError(f"--import: there is no file {shown(name)}")
        return path.resolve()
    spec, places = None, None
    for i in range(1, name.count(".") + 2 if all(map(str.isidentifier, name.split("."))) else 0):
        spec = PathFinder.find_spec(".".join(name.split(".")[:i]), places)
        if spec is None:
            break
        places = spec.submodule_search_locations
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise UserError(f"--import: there is no module {shown(name)}")
    return Path(spec.origin)


def _read(path: Path) -> list[Entry]:
    classes, found = _classes(path), []
    for node in (item for item in _parse(path).body if isinstance(item, ast.ClassDef)):
        name = next(filter(None, map(_registered_name, node.decorator_list)), None)
        if name is not None:
            check_name(name, f"{path}: the name of a method")
            found.append(_entry(path, name, _lineage(node, classes)))
    return found


def _entry(path: Path, name: str, lineage: Sequence[ast.ClassDef]) -> Entry:
    """What a class and its bases say, its own word the last."""
    constants = {k: v for cls in reversed(lineage) for k, v in _constants(cls).items()}
    prior, reference = str(constants.get("prior", "none")), bool(constants.get("reference", False))
    if prior not in PRIORS:
        raise UserError(f"{path}: {name}: {unknown('prior', prior, PRIORS)}")
    fields: dict[str, tuple[object, object]] = {}
    try:
        for cls in reversed(lineage):
            # As for Python, a constant takes the place of a field of a base.
            constant = {name for name, item in _annotated(cls).items() if _is_class_var(item)}
            fields = {k: v for k, v in fields.items() if k not in constant} | _fields(cls)
    except ValueError as error:
        raise UserError(f"{path}: {name}: {error}") from None
    if taken := fields.keys() & _interface():
        raise UserError(f"{path}: {name}: {sorted(taken)[0]}() is a member of Method: name the field otherwise")
    return Entry(
        name=name,
        path=path,
        prior=prior,
        reference=reference,
        needs_data=reference and bool(constants.get("needs_data", False)),
        cites=tuple(str(constants.get("cites", "")).split()),
        summary=(ast.get_docstring(lineage[0]) or "").split("\n")[0],
        arguments={key: default for key, (default, _) in fields.items()},
        examples={key: example for key, (_, example) in fields.items()},
    )


# Name → class, and what the names of its bases stand for where it is defined.
Classes = dict[str, tuple[ast.ClassDef, "Classes"]]


def _classes(path: Path, home: Path | None = None, seen: tuple[Path, ...] = ()) -> Classes:
    """The classes a file defines or imports from the files that `_imported` finds, by the names they have there."""
    tree, home, seen = _parse(path), home or path.parent, (*seen, path)
    found: Classes = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for source in _imported(node, path, home):
                theirs = _classes(source, home, seen) if source not in seen else {}
                found |= {a.asname or a.name: theirs[a.name] for a in node.names if a.name in theirs}
        elif isinstance(node, ast.ClassDef):
            found[node.name] = node, found
    return found


def _parse(path: Path) -> ast.Module:
    try:
        return _tree(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as Python: {error or type(error).__name__}") from error


@functools.cache
def _tree(text: str, name: str) -> ast.Module:
    """Parsing is what costs here, and one command asks for the same file many times; nothing changes a tree."""
    return ast.parse(text, name)


def _registered_name(decorator: ast.expr) -> Any:
    """`name` of `@METHODS.register_module("name")` or `(name="name")`."""
    if not (isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("METHODS.register_module")):
        return None
    named = [keyword.value for keyword in decorator.keywords if keyword.arg == "name"]
    values = [node.value for node in (*decorator.args, *named) if isinstance(node, ast.Constant)]
    return values[0] if values else None


def _lineage(node: ast.ClassDef, classes: Classes) -> list[ast.ClassDef]:
    """The class and those of its bases that can be read, nearest first."""
    line = [node]
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            line += _lineage(*classes[base.id])
    return line


def _constants(node: ast.ClassDef) -> dict[str, object]:
    """Class attributes that are set to a constant, annotated or not."""
    found: dict[str, object] = {}
    for item in node.body:
        if isinstance(item, ast.Assign | ast.AnnAssign) and isinstance(item.value, ast.Constant):
            target = item.targets[0] if isinstance(item, ast.Assign) else item.target
            if isinstance(target, ast.Name):
                found[target.id] = item.value.value
    return found


def _fields(node: ast.ClassDef) -> dict[str, tuple[object, object]]:
    """The dataclass fields of a class: default, and an example of the type. Raises ValueError for what is no field."""
    if any(isinstance(item, ast.FunctionDef) and item.name == "__init__" for item in node.body):
        raise ValueError(f"{node.name} has a constructor of its own, whose arguments nobody could know; {_WANTED}")
    fields = {name: item for name, item in _annotated(node).items() if not _is_class_var(item)}
    # Without it Python keeps the bases' defaults, and the record would state what did not run.
    if fields and not _is_dataclass(node):
        raise ValueError(f"{node.name} has hyper-parameters; put @dataclass(eq=False) above it")
    return {name: _default(item) for name, item in fields.items()}


def _annotated(node: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    """The annotated names of a class: its fields, and constants that say ClassVar."""
    found = (item for item in node.body if isinstance(item, ast.AnnAssign))
    return {item.target.id: item for item in found if isinstance(item.target, ast.Name)}


def _is_class_var(item: ast.AnnAssign) -> bool:
    return "ClassVar" in ast.unparse(item.annotation)


def _interface() -> set[str]:
    """The functions of `Method`, which a field of that name would replace."""
    (method,) = (n for n in _parse(_METHOD).body if isinstance(n, ast.ClassDef) and n.name == "Method")
    return {item.name for item in method.body if isinstance(item, ast.FunctionDef)}


def _is_dataclass(node: ast.ClassDef) -> bool:
    called = [part.func if isinstance(part, ast.Call) else part for part in node.decorator_list]
    return any(ast.unparse(part).rpartition(".")[2] == "dataclass" for part in called)


def _default(item: ast.AnnAssign) -> tuple[object, object]:
    """The default of a field and a value of its type, which None does not tell: `float | None` does."""
    where = f"{ast.unparse(item.target)}; {_WANTED}"
    if item.value is None:
        raise ValueError(f"no default of {where}")
    try:
        default = ast.literal_eval(item.value)
    except (ValueError, TypeError):
        raise ValueError(f"no literal as default of {where}") from None
    if default is not None:
        return default, default
    names = {name.strip() for name in ast.unparse(item.annotation).strip("'\"").split("|")} - {"None"}
    if len(names) != 1 or not names <= EXAMPLES.keys():
        raise ValueError(f"no type of {where}")
    return default, EXAMPLES[names.pop()]


def code_digest(*files: Path) -> str:
    """sha256 over the syntax trees without docstrings and comments: an edit of words makes no record stale.

    Depends neither on where the files lie nor on the version of Python that reads them.
    """
    each = sorted(_digest(_parse(path)) for path in files)
    return hashlib.sha256("".join(each).encode()).hexdigest()


@functools.cache
def _digest(tree: ast.Module) -> str:
    """Of a tree that `_tree` keeps."""
    return hashlib.sha256(repr(_shape(tree)).encode()).hexdigest()


def _shape(node: object) -> object:
    """A syntax tree as nested lists, less strings that stand alone and fields that hold nothing (versions of Python
    differ in the empty ones)."""
    if isinstance(node, ast.AST):
        fields = [(name, _shape(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, [(name, value) for name, value in fields if value not in (None, [])]]
    if isinstance(node, list):
        return [_shape(item) for item in node if not _is_text(item)]
    return node


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _with_imports(path: Path, seen: tuple[Path, ...] = (), home: Path | None = None) -> tuple[Path, ...]:
    """The file and, transitively, the method files it imports; of one from outside also what it imports from its own
    folder, `home`."""
    seen, home = (*seen, path), home or path.parent
    for node in _imports(_parse(path)):
        for target in _imported(node, path, home):
            if target not in seen:
                seen = _with_imports(target, seen, home)
    return seen


@functools.cache
def _imports(tree: ast.Module) -> list[ast.AST]:
    """Every import statement of a tree that `_tree` keeps."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def _imported(node: ast.AST, path: Path, home: Path) -> Iterator[Path]:
    """The method files, or those of a guest's own folder, that an import statement in the file `path` executes."""
    if isinstance(node, ast.ImportFrom):
        start = path.parents[min(node.level, len(path.parents)) - 1] if node.level else None
        names = [f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names]
    elif isinstance(node, ast.Import):
        start, names = None, [alias.name for alias in node.names]
    else:
        return
    guest = home not in paths.METHODS
    for parts in (name.split(".") for name in names):
        if start is None and parts[0] in [folder.name for folder in paths.METHODS]:
            places, files = [paths.ROOT], ["{}.py"]
        elif guest and parts[0] != "dfkd":
            # Its parents: a package that holds it may be named from outside.
            places, files = [start] if start else [home, *home.parents], ["{}.py", "{}/__init__.py"]
        else:
            continue
        stems = (place.joinpath(*parts[: i + 1]) for place in places for i in range(len(parts)))
        targets = (Path(file.format(stem)) for stem in stems for file in files)
        yield from (t for t in targets if t.is_file() and (paths.ROOT in places or t.is_relative_to(home)))


@functools.cache
def harness_digest() -> str:
    """The digest of the harness's own code. Kept in the work folder, since the trees of all its files take a second."""
    files = sorted(paths.CODE.rglob("*.py"))
    content = hashlib.sha256("".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files).encode())
    known, found = paths.harness(), re.compile(f"{content.hexdigest()} ([0-9a-f]{{64}})\n")
    with suppress(OSError, UnicodeDecodeError):
        if match := found.fullmatch(known.read_text(encoding="ascii")):
            return match[1]
    digest = code_digest(*files)
    with suppress(CannotWrite):
        replace_file(known, f"{content.hexdigest()} {digest}\n")
    return digest
