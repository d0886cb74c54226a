"""Kinds by name, found without importing them.

A task, network, model, metric or figure registers under its name where it is defined::

    @MODELS.register("sae_gru")
    class SaeGru(SequentialAutoencoder): ...

The names are read from the source text of the package, so that the configuration can be checked, and a rule can
name the one module it depends on, without paying for torch and without one kind's code reaching another's.
"""

import ast
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from ctdb.errors import ConfigError, nearest

T = TypeVar("T")


class Registry:
    """The kinds of one package and of the entry-point group of the same name.

    Parameters
    ----------
    package
        Dotted name of the package whose modules define kinds, for example ``ctdb.models``. Installed packages add
        theirs through the entry-point group of that name.
    also
        Dotted names of modules elsewhere that define kinds too.
    """

    def __init__(self, package: str, also: Sequence[str] = ()):
        self.package, self._also = package, also
        self._defined: dict[str, object] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: file the object below it under `name`."""

        def file_under_name(thing: T) -> T:
            self._defined[name] = thing
            return thing

        return file_under_name

    @cached_property
    def modules(self) -> dict[str, str]:
        """Kind to the dotted name of the module that defines it, sorted by kind.

        Raises
        ------
        ConfigError
            If a name is claimed twice.
        """
        found: dict[str, str] = {}
        package = importlib.import_module(self.package)
        for file in sorted(Path(package.__path__[0]).glob("*.py")):
            for name in _registered_names(file):
                self._claim(found, name, f"{self.package}.{file.stem}")
        for module in self._also:
            for name in _registered_names(Path(importlib.util.find_spec(module).origin)):
                self._claim(found, name, module)
        for point in entry_points(group=self.package):
            if found.get(point.name) != point.module:
                self._claim(found, point.name, point.module)
        return dict(sorted(found.items()))

    def module(self, name: str) -> str:
        """Dotted name of the module that defines `name`; raises ConfigError with the nearest name if none does."""
        if name not in self.modules:
            family = self.package.rpartition(".")[2]
            raise ConfigError(f"{name!r} is not among {family}: {nearest(name, self.modules)}")
        return self.modules[name]

    def __getitem__(self, name: str) -> object:
        """Object registered under `name`, importing its module at need; raises as :meth:`module`."""
        module = self.module(name)
        importlib.import_module(module)
        if name not in self._defined:
            raise ConfigError(f"{module} was to register {name!r} among {self.package}, but did not; see its decorator")
        return self._defined[name]

    def _claim(self, found: dict[str, str], name: str, module: str) -> None:
        if name in found:
            raise ConfigError(f"{self.package}: both {found[name]} and {module} register {name!r}; rename one")
        found[name] = module


def _registered_names(file: Path) -> list[str]:
    """Names that a source file registers by a decorator ``@ANYTHING.register("name")``."""
    calls = (
        decorator
        for node in ast.parse(file.read_text(), str(file)).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        for decorator in node.decorator_list
    )
    return [
        call.args[0].value
        for call in calls
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "register"
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    ]
