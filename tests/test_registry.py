"""Kinds are found by reading source text, and loaded one module at a time."""

import itertools
import json
import subprocess
import sys

import pytest

from ctdb.datasets.kind import DATASETS
from ctdb.errors import ConfigError
from ctdb.models import MODELS
from ctdb.models.observations import OBSERVATIONS
from ctdb.networks import NETWORKS
from ctdb.registry import Registry
from ctdb.tasks import TASKS

NUMBERS = itertools.count()

TWO_KINDS = {
    "apple": """
        from {package} import KINDS

        @KINDS.register("apple")
        class Apple: ...
        """,
    "pear": """
        from {package} import KINDS

        @KINDS.register("pear")
        def pear(): ...

        @KINDS.register("plum")
        class Plum: ...
        """,
}


@pytest.fixture
def make_kinds(tmp_path, monkeypatch):
    """Package of a fresh name with one module per text; ``KINDS`` is its registry."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def make(modules: dict[str, str], also: str = "[]") -> Registry:
        package = f"kinds_of_test_{next(NUMBERS)}"
        made.append(package)
        (tmp_path / package).mkdir()
        texts = {"__init__": f"from ctdb.registry import Registry\nKINDS = Registry(__name__, also={also})\n"} | modules
        for name, text in texts.items():
            lines = (line.removeprefix(" " * 8) for line in text.format(package=package).splitlines())
            (tmp_path / package / f"{name}.py").write_text("\n".join(lines))
        return getattr(__import__(package), "KINDS")  # noqa: B009

    yield make
    for name in [name for name in sys.modules if name.partition(".")[0] in made]:
        del sys.modules[name]


@pytest.fixture
def install_plugin(tmp_path, monkeypatch):
    """Distribution with entry points, as pip would leave it on the path."""

    def install(points: dict[tuple[str, str], str], modules: dict[str, str]):
        site = tmp_path / f"site_{next(NUMBERS)}"
        metadata = site / "plugin-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(
            "".join(f"[{group}]\n{name} = {module}\n" for (group, name), module in points.items())
        )
        for name, text in modules.items():
            (site / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(site)

    return install


def loaded(package: str) -> set[str]:
    return {name for name in sys.modules if name.startswith(f"{package}.")}


def test_kinds_are_found_with_their_modules_in_order(make_kinds):
    kinds = make_kinds(TWO_KINDS)
    package = kinds.package
    assert list(kinds.modules.items()) == [
        ("apple", f"{package}.apple"),
        ("pear", f"{package}.pear"),
        ("plum", f"{package}.pear"),
    ]
    assert kinds.module("plum") == f"{package}.pear"


def test_no_module_is_imported_to_find_kinds(make_kinds):
    kinds = make_kinds(TWO_KINDS | {"broken": "raise RuntimeError('imported')\n"})
    assert list(kinds.modules) == ["apple", "pear", "plum"]
    assert loaded(kinds.package) == set()


def test_a_kind_loads_its_own_module_alone(make_kinds):
    kinds = make_kinds(TWO_KINDS)
    assert kinds["plum"].__name__ == "Plum"
    assert kinds["pear"].__name__ == "pear"
    assert loaded(kinds.package) == {f"{kinds.package}.pear"}


def test_other_decorators_and_plain_calls_are_no_kinds(make_kinds):
    text = """
        import functools
        from {package} import KINDS

        NAME = "by_variable"

        @functools.cache
        def helper(): ...

        @KINDS.describe("not_a_kind")
        @KINDS.register(NAME)
        def described(): ...

        class Inner:
            @KINDS.register
            def method(self): ...
        """
    assert make_kinds({"others": text}).modules == {}


def test_an_unknown_name_is_refused_with_the_nearest(make_kinds):
    kinds = make_kinds(TWO_KINDS)
    with pytest.raises(ConfigError, match=rf"^'aple' is not among {kinds.package}: did you mean 'apple'\?$"):
        kinds.module("aple")
    with pytest.raises(ConfigError, match=r"'zebra' is not among .*: valid: apple, pear, plum$"):
        kinds["zebra"]


def test_a_registry_without_kinds_says_so(make_kinds):
    with pytest.raises(ConfigError, match=r"'apple' is not among .*: there is none to choose from"):
        make_kinds({}).module("apple")


def test_one_name_in_two_modules_is_refused(make_kinds):
    kinds = make_kinds(TWO_KINDS | {"second": TWO_KINDS["apple"]})
    package = kinds.package
    with pytest.raises(ConfigError) as raised:
        kinds.modules  # noqa: B018
    for part in (package, f"{package}.apple", f"{package}.second", "register 'apple'", "rename one"):
        assert part in str(raised.value)


def test_one_name_twice_in_a_module_is_refused(make_kinds):
    text = TWO_KINDS["pear"].replace('"plum"', '"pear"')
    with pytest.raises(ConfigError, match="register 'pear'"):
        make_kinds({"pear": text}).modules  # noqa: B018


def test_a_module_elsewhere_defines_kinds_too(make_kinds, tmp_path):
    elsewhere = f"elsewhere_{next(NUMBERS)}"
    kinds = make_kinds(TWO_KINDS, also=f"['{elsewhere}', 'nowhere_else.{elsewhere}']")
    package = kinds.package
    for module, name in ((elsewhere, "cherry"), (f"nowhere_else/{elsewhere}", "damson")):
        (tmp_path / module).with_suffix(".py").parent.mkdir(exist_ok=True)
        text = f"import {package}\n@{package}.KINDS.register('{name}')\nclass {name.title()}: ...\n"
        (tmp_path / module).with_suffix(".py").write_text(text)
    (tmp_path / "nowhere_else/__init__.py").write_text("")
    assert list(kinds.modules) == ["apple", "cherry", "damson", "pear", "plum"]
    assert kinds.module("cherry") == elsewhere
    assert kinds.module("damson") == f"nowhere_else.{elsewhere}"
    assert not {elsewhere, f"nowhere_else.{elsewhere}"} & set(sys.modules)  # found, and not imported
    assert loaded(package) == set()
    assert kinds["cherry"].__name__ == "Cherry"
    assert kinds["apple"].__name__ == "Apple"
    for name in (elsewhere, "nowhere_else"):
        sys.modules.pop(name, None)


def test_a_name_that_a_module_elsewhere_claims_again_is_refused(make_kinds, tmp_path):
    elsewhere = f"elsewhere_{next(NUMBERS)}"
    kinds = make_kinds(TWO_KINDS, also=f"['{elsewhere}']")
    (tmp_path / f"{elsewhere}.py").write_text(
        f"import {kinds.package} as k\n@k.KINDS.register('pear')\nclass Pear: ...\n"
    )
    with pytest.raises(ConfigError, match=rf"both {kinds.package}\.pear and {elsewhere} register 'pear'"):
        kinds.modules  # noqa: B018


def test_an_installed_package_adds_its_kinds(make_kinds, install_plugin):
    kinds = make_kinds(TWO_KINDS)
    module = f"plugin_{next(NUMBERS)}"
    text = f"from {kinds.package} import KINDS\n@KINDS.register('cherry')\nclass Cherry: ...\n"
    install_plugin({(kinds.package, "cherry"): f"{module}:Cherry", ("other.group", "x"): module}, {module: text})
    assert list(kinds.modules) == ["apple", "cherry", "pear", "plum"]
    assert kinds.module("cherry") == module
    assert module not in sys.modules
    assert kinds["cherry"].__name__ == "Cherry"
    del sys.modules[module]


def test_an_installed_package_may_not_take_a_name(make_kinds, install_plugin):
    kinds = make_kinds(TWO_KINDS)
    install_plugin({(kinds.package, "pear"): "plugin_of_pears:Pear"}, {})
    with pytest.raises(ConfigError, match=rf"both {kinds.package}\.pear and plugin_of_pears register 'pear'"):
        kinds.modules  # noqa: B018


def test_names_of_ctdb_are_found_without_torch_and_without_their_modules():
    code = """
import json, sys
from ctdb.datasets.kind import DATASETS
from ctdb.models import MODELS
from ctdb.models.observations import OBSERVATIONS
from ctdb.networks import NETWORKS
from ctdb.tasks import TASKS
names = {registry.package: registry.modules for registry in (DATASETS, MODELS, OBSERVATIONS, NETWORKS, TASKS)}
print(json.dumps([names, sorted(sys.modules)]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = json.loads(found.stdout)
    assert "torch" not in imported
    defining = {module for modules in names.values() for module in modules.values()}
    assert defining
    assert defining & set(imported) <= {"ctdb.datasets.user_file"}  # which its package exports
    assert names == {
        registry.package: registry.modules for registry in (DATASETS, MODELS, OBSERVATIONS, NETWORKS, TASKS)
    }


@pytest.mark.parametrize(
    ("registry", "name", "module"),
    [
        (MODELS, "sae_gru", "ctdb.models.sae_gru"),
        (MODELS, "lds", "ctdb.models.lds"),
        (OBSERVATIONS, "gamma", "ctdb.models.observations.gamma"),
        (DATASETS, "lorenz", "ctdb.datasets.lorenz"),
        (DATASETS, "file", "ctdb.datasets.user_file"),
        (DATASETS, "simulated", "ctdb.simulation"),
        (NETWORKS, "noisy_gru", "ctdb.networks.noisy_gru"),
        (TASKS, "nbff", "ctdb.tasks.nbff"),
    ],
)
def test_a_kind_of_ctdb_is_where_it_is_defined(registry, name, module):
    assert registry.module(name) == module
    assert registry[name].__module__ == module


def test_a_misspelt_model_is_named_with_the_right_one():
    with pytest.raises(ConfigError, match=r"'sae_gur' is not among models: did you mean 'sae_gru'\?"):
        MODELS["sae_gur"]
