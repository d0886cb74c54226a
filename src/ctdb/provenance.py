"""Fingerprints of code: what a rule's script really runs, so that a stage reruns when, and only when, that changed.

Snakemake sees a rule's parameters but not the package its script imports. Each rule therefore carries
``code=fingerprint(script, *kinds)``: a hash over the syntax trees of the script and of every ctdb module in its
static import closure. Comments, docstrings, formatting, file times and git checkouts leave it as it is.
"""

import ast
import atexit
import contextlib
import functools
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from ctdb.errors import WriteError
from ctdb.files import write_text

REPORTING_ONLY = frozenset({"ctdb.errors", "ctdb.interruption", "ctdb.jobs", "ctdb.provenance"})
"""Modules that word messages, end jobs, open logs and take fingerprints. They cannot change a result."""


def fingerprint(script: Path | str, *modules: str) -> str:
    """Hash of the code that `script` and `modules` run.

    Parameters
    ----------
    script
        A Python file outside the package, such as a rule's script.
    *modules
        Dotted names of modules that the script loads by name at run time, such as the one that defines a model.

    Returns
    -------
    Twelve hexadecimal digits.
    """
    own = {name.partition(".")[0] for name in modules} | {"ctdb"}
    pending = [*modules, *_imports(Path(script), "", own)]
    closure: dict[str, str] = {}
    while pending:
        name = pending.pop()
        file = _source(name)
        if name in closure or name in REPORTING_ONLY or file is None:
            continue
        closure[name] = _parsed(file).hash
        if file.name == "__init__.py":  # what a package compiles at run time is code of its own
            closure |= {f"{name}/{source.name}": _text_hash(source) for source in file.parent.glob("*.cpp")}
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        pending += _imports(file, package, own)
        if "." in name:
            pending.append(name.rpartition(".")[0])
    text = "\n".join([_parsed(Path(script)).hash, *(f"{name} {closure[name]}" for name in sorted(closure))])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _imports(file: Path, package: str, own: set[str]) -> list[str]:
    """Dotted names that `file` imports, at any depth, from the packages in `own`."""
    names: list[str] = []
    for level, base, imported in _parsed(file).imports:
        if level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - level + 1], *([base] if base else [])])
        names += [base, *(f"{base}.{name}" for name in imported)]  # an attribute or a submodule: see _source
    return [name for name in names if name.partition(".")[0] in own]


def _source(name: str) -> Path | None:
    """Source file of a module, found without importing its package; None for what is not one, such as a function."""
    top, *parts = name.split(".")
    if top == "__main__":  # a model defined in the running script; a session has no file
        script = getattr(sys.modules["__main__"], "__file__", None)
        return None if script is None else Path(script)
    roots = [root.joinpath(*parts) for root in _roots(top, tuple(sys.path))]
    candidates = (file for root in roots for file in (root / "__init__.py", root.with_suffix(".py")))
    return next((file for file in candidates if file.is_file()), None)


@functools.cache  # asked of the same few packages for every module of every rule
def _roots(top: str, _path: tuple[str, ...]) -> list[Path]:
    """Where a package or single-file module lies on the module path: several folders for a namespace."""
    spec = importlib.util.find_spec(top)
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    return folders or ([] if spec.origin is None else [Path(spec.origin)])


class _Parsed(NamedTuple):
    """What counts of a file: hash of its syntax tree; level, module and names of each import."""

    hash: str
    imports: list[tuple[int, str, list[str]]]


def _parsed(file: Path) -> _Parsed:
    status = file.stat()
    return _parse(file, status.st_mtime_ns, status.st_size)


@functools.cache
def _parse(file: Path, _mtime: int, _size: int) -> _Parsed:
    source = file.read_bytes()
    key = hashlib.sha256(source).hexdigest()
    if key not in _known:
        _known[key] = _Parsed(*_read_source(source, file))
        _new.add(key)
    return _known[key]


_known: dict[str, _Parsed] = {}
_new: set[str] = set()


def remember_in(folder: Path | str) -> None:
    """Keep what source files parse to in a file of this folder: every job's process asks for the same hundreds."""
    own = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    path = Path(folder) / f"parsed-{own}-{sys.version_info.major}.{sys.version_info.minor}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        kept = {key: _Parsed(*value) for key, value in json.loads(path.read_text()).items()}
        _known.update({key: value for key, value in kept.items() if key not in _known})
    atexit.register(_keep, path)


def _keep(path: Path) -> None:
    if _new:
        with contextlib.suppress(WriteError):  # another process may be writing the same; it is only a shortcut
            write_text(path, json.dumps(_known))


def _read_source(source: bytes, file: Path) -> tuple[str, list[tuple[int, str, list[str]]]]:
    """Hash and imports of a source file."""
    tree = ast.parse(source, str(file))
    imports: list[tuple[int, str, list[str]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [(0, alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", [alias.name for alias in node.names]))
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest(), imports


def _text_hash(source: Path) -> str:
    """Hash of a C++ file without comments and layout."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", source.read_text(), flags=re.DOTALL)
    return hashlib.sha256(" ".join(code.split()).encode()).hexdigest()


def _plain(node: object) -> object:
    """Syntax tree as nested tuples: without positions, docstrings and empty fields, which vary between Pythons."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.Constant):
        return ("Constant", repr(node.value))
    fields = []
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            value = [item for item in value if not _is_bare_string(item)]
        if name in {"ctx", "type_comment", "type_ignores", "kind"} or value is None or value == []:
            continue
        fields.append((name, _plain(value)))
    return (type(node).__name__, *fields)


def _is_bare_string(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
