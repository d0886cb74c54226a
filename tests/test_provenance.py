"""Fingerprints change when, and only when, code that a script runs has changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ctdb
from ctdb.provenance import fingerprint

PACKAGE = {
    "script.py": "from tinypkg.direct import go\n\nprint(go(1))\n",
    "tinypkg/__init__.py": "VERSION = 1\n",
    "tinypkg/direct.py": "from tinypkg.deep import helper\n\n\ndef go(x):\n    return helper(x) + 1\n",
    "tinypkg/deep.py": "def helper(x):\n    return 2 * x\n",
    "tinypkg/unrelated.py": "LIMIT = 3\n",
    "tinypkg/kinds/__init__.py": "",
    "tinypkg/kinds/one.py": "from . import shared\nfrom ..relative import base\n\nONE = shared.A + base.B\n",
    "tinypkg/kinds/two.py": "from tinypkg.kinds.shared import A\n\nTWO = A\n",
    "tinypkg/kinds/shared.py": "A = 1\n",
    "tinypkg/relative/__init__.py": "",
    "tinypkg/relative/base.py": "def late():\n    import tinypkg.relative.lazy as lazy\n    return lazy.C\n\nB = 1\n",
    "tinypkg/relative/lazy.py": "C = 1\n",
}
ENTRY = "tinypkg.direct"  # a module of the package is named, so that its imports count as ctdb's own


class Project:
    """A script and a package on the path, which a test edits."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.clock = 1_600_000_000_000_000_000
        for name, text in PACKAGE.items():
            self.write(name, text)

    def write(self, name: str, text: str):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self.clock += 1_000_000_000
        os.utime(path, ns=(self.clock, self.clock))

    def edit(self, name: str, old: str, new: str):
        text = (self.folder / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def fingerprint(self, *modules: str) -> str:
        return fingerprint(self.folder / "script.py", *(modules or (ENTRY,)))


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return Project(tmp_path)


def test_a_fingerprint_is_twelve_hexadecimal_digits(project):
    found = project.fingerprint()
    assert len(found) == 12
    assert int(found, 16) >= 0


@pytest.mark.parametrize("name", ["script.py", "tinypkg/__init__.py", "tinypkg/direct.py", "tinypkg/deep.py"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda text: "# why\n" + text + "# the end\n",
        lambda text: '"""What this is."""\n' + text,
        lambda text: "\n\n\n" + text.replace(" = ", "   =   ").replace("(x)", "( x )") + "\n\n",
        lambda text: text.replace(":\n    ", ':\n    """Docstring."""\n    # comment\n    ').replace("1", "(1)"),
    ],
    ids=["comments", "module docstring", "formatting", "docstrings and brackets"],
)
def test_comments_docstrings_and_formatting_do_not_count(project, name, edit):
    before = project.fingerprint()
    text = (project.folder / name).read_text()
    project.write(name, edit(text))
    assert (project.folder / name).read_text() != text
    assert project.fingerprint() == before


def test_docstrings_of_classes_and_coroutines_do_not_count(project):
    project.write("tinypkg/deep.py", "class A:\n    x = 1\n\n\nasync def helper(x):\n    return x\n")
    before = project.fingerprint()
    project.write(
        "tinypkg/deep.py",
        'class A:\n    """A."""\n\n    x = 1\n    """x."""\n\n\nasync def helper(x):\n    "h"\n    return x\n',
    )
    assert project.fingerprint() == before


def test_times_of_files_do_not_count(project):
    before = project.fingerprint()
    for name in PACKAGE:
        project.write(name, (project.folder / name).read_text())
    assert project.fingerprint() == before


def test_the_place_of_the_project_and_the_process_do_not_count(project, tmp_path):
    shutil.copytree(tmp_path, tmp_path / "moved" / "copy", ignore=shutil.ignore_patterns("moved"))
    code = f"from ctdb.provenance import fingerprint; print(fingerprint('script.py', {ENTRY!r}))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "moved" / "copy",
        env=os.environ | {"PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == project.fingerprint()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("script.py", "go(1)", "go(2)"),
        ("tinypkg/direct.py", "helper(x) + 1", "helper(x) - 1"),
        ("tinypkg/deep.py", "2 * x", "2.0 * x"),
        ("tinypkg/__init__.py", "VERSION = 1", "VERSION = 2"),
    ],
    ids=["script", "directly imported", "transitively imported", "package"],
)
def test_code_that_runs_counts(project, name, old, new):
    before = project.fingerprint()
    project.edit(name, old, new)
    changed = project.fingerprint()
    assert changed != before
    project.edit(name, new, old)
    assert project.fingerprint() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x = 1", "x = True"),
        ("x = 1", "x = '1'"),
        ("x = 1", "x: int = 1"),
        ("y = x[1:]", "y = x[:1]"),
        ("if x:\n    y = 1\nz = 2", "if x:\n    y = 1\n    z = 2"),
        ("def f(a, b=1): ...", "def f(a, *, b=1): ..."),
        ("def f():\n    return", "def f():\n    yield"),
        ("y = 'text'", "y = b'text'"),
        ("y = f'{x}'", "y = f'{x!r}'"),
        ("y = a and b or c", "y = a and (b or c)"),
        ("y = not x", "y = -x"),
        ("@g\ndef f(): ...", "def f(): ..."),
        ("x = 'a'\n'docstring'", "x = 'b'\n'docstring'"),
    ],
)
def test_every_change_of_meaning_counts(project, old, new):
    project.write("tinypkg/deep.py", old + "\n")
    before = project.fingerprint()
    project.write("tinypkg/deep.py", new + "\n")
    assert project.fingerprint() != before


@pytest.mark.parametrize("name", ["tinypkg/unrelated.py", "tinypkg/kinds/one.py", "tinypkg/kinds/__init__.py"])
def test_modules_that_are_not_imported_do_not_count(project, name):
    before = project.fingerprint()
    project.write(name, "CHANGED = True\n")
    assert project.fingerprint() == before


def test_a_new_module_beside_the_others_does_not_count(project):
    before = project.fingerprint()
    project.write("tinypkg/new.py", "NEW = True\n")
    assert project.fingerprint() == before


def test_a_named_module_counts_with_all_that_it_imports(project):
    before = project.fingerprint("tinypkg.kinds.one")
    assert before not in (project.fingerprint("tinypkg.kinds.two"), project.fingerprint())
    for name in ("kinds/one", "kinds/shared", "kinds/__init__", "relative/__init__", "relative/base", "relative/lazy"):
        text = (project.folder / f"tinypkg/{name}.py").read_text()
        project.write(f"tinypkg/{name}.py", text + "CHANGED = True\n")
        assert project.fingerprint("tinypkg.kinds.one") != before, name
        project.write(f"tinypkg/{name}.py", text)
    assert project.fingerprint("tinypkg.kinds.one") == before


def test_a_named_module_leaves_its_neighbours_out(project):
    before = project.fingerprint("tinypkg.kinds.one")
    project.edit("tinypkg/kinds/two.py", "TWO = A", "TWO = -A")
    assert project.fingerprint("tinypkg.kinds.one") == before


def test_the_order_of_named_modules_does_not_count(project):
    one, two = "tinypkg.kinds.one", "tinypkg.kinds.two"
    assert project.fingerprint(one, two) == project.fingerprint(two, one)


def test_two_modules_that_exchange_their_code_count(project):
    project.write("tinypkg/direct.py", "from tinypkg import deep, unrelated\n")
    before = project.fingerprint()
    texts = [(project.folder / f"tinypkg/{name}.py").read_text() for name in ("deep", "unrelated")]
    for name, text in zip(("unrelated", "deep"), texts, strict=True):
        project.write(f"tinypkg/{name}.py", text)
    assert project.fingerprint() != before


def test_modules_that_import_each_other_have_a_fingerprint(project):
    project.edit("tinypkg/deep.py", "def", "import tinypkg.direct\n\n\ndef")
    before = project.fingerprint()
    project.edit("tinypkg/direct.py", "+ 1", "+ 2")
    assert project.fingerprint() != before


def test_a_submodule_imported_from_its_package_counts(project):
    project.write("script.py", "from tinypkg import unrelated\n")
    before = project.fingerprint()
    project.edit("tinypkg/unrelated.py", "LIMIT = 3", "LIMIT = 4")
    assert project.fingerprint() != before


def test_no_module_is_imported_to_take_a_fingerprint(project):
    project.write("tinypkg/deep.py", "raise RuntimeError('imported')\n")
    project.fingerprint()
    assert "tinypkg" not in sys.modules


def test_a_file_that_a_package_compiles_counts_without_its_comments(project):
    before = project.fingerprint()
    project.write("tinypkg/loops.cpp", "int twice(int x) { return 2 * x; }  // fast\n")
    made = project.fingerprint()
    assert made != before
    project.write("tinypkg/loops.cpp", "/* of an int */ int twice(int x) {\n    return 2 * x;\n}\n")
    assert project.fingerprint() == made
    project.edit("tinypkg/loops.cpp", "2 * x", "3 * x")
    assert project.fingerprint() != made


def test_a_single_file_module_counts(project):
    project.write("lonely_kind.py", "from tinypkg import unrelated\n\nX = 1\n")
    before = project.fingerprint("lonely_kind")
    project.edit("lonely_kind.py", "X = 1", "X = 2")
    assert project.fingerprint("lonely_kind") != before


def test_a_module_of_a_namespace_package_counts(project):
    project.write("company/models/own.py", "X = 1\n")
    before = project.fingerprint("company.models.own")
    project.edit("company/models/own.py", "X = 1", "X = 2")
    assert project.fingerprint("company.models.own") != before


def test_a_model_defined_in_the_running_script_counts(tmp_path):
    script = tmp_path / "run.py"
    prints = []
    for number in (1, 1, 2):
        script.write_text(
            "from ctdb.provenance import fingerprint\n"
            f"class Model:\n    size = {number}\n"
            "import ctdb.seeds as other\n"
            "print(fingerprint(other.__file__, Model.__module__))\n"
        )
        prints.append(subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout)
    assert prints[0] == prints[1] != prints[2]


def test_a_session_without_a_file_has_a_fingerprint():
    code = "import ctdb.seeds as s; from ctdb.provenance import fingerprint; print(fingerprint(s.__file__, '__main__'))"
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


EDIT_EVERY_MODULE = """
import json, sys
from pathlib import Path
import ctdb
from ctdb.provenance import fingerprint

folder = Path(ctdb.__file__).parent
assert folder == Path(sys.argv[1]) / "ctdb", folder
changed = {}
for script, *modules in json.loads(sys.argv[2]):
    before = fingerprint(script, *modules)
    changed[" ".join([Path(script).name, *modules])] = found = []
    for file in sorted(folder.rglob("*.py")):
        text = file.read_text()
        file.write_text(text + "\\nEDITED = True\\n")
        if fingerprint(script, *modules) != before:
            parts = file.relative_to(folder.parent).with_suffix("").parts
            found.append(".".join(parts).removesuffix(".__init__"))
        file.write_text(text)
    assert fingerprint(script, *modules) == before
print(json.dumps(changed))
"""


@pytest.fixture(scope="module")
def counting_modules(tmp_path_factory):
    """For three rules of the workflow: the modules of a copy of ctdb whose code counts, found by editing each."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(Path(ctdb.__file__).parent, folder / "ctdb", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "fit.py").write_text("from ctdb.training.fitting import fit\nfrom ctdb.models import build\n")
    (folder / "score.py").write_text("from ctdb.metrics import METRICS\n")
    rules = [["fit.py"], ["fit.py", "ctdb.models.sae_gru"], ["score.py"]]
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            EDIT_EVERY_MODULE,
            folder,
            json.dumps([[str(folder / script), *modules] for script, *modules in rules]),
        ],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return {key: set(modules) for key, modules in json.loads(found.stdout).items()}


def test_what_fitting_runs_counts_for_a_fit(counting_modules):
    assert counting_modules["fit.py"] >= {
        "ctdb",
        "ctdb.training",
        "ctdb.training.fitting",
        "ctdb.training.loop",
        "ctdb.training.batches",
        "ctdb.datasets.hdf5",
        "ctdb.datasets.dataset",
        "ctdb.files",
        "ctdb.seeds",
        "ctdb.settings",
        "ctdb.models",
        "ctdb.models.base",
        "ctdb.recurrent.backends",
        "ctdb.recurrent.eager",
        "ctdb.recurrent.cpu.kernels",
    }


@pytest.mark.parametrize("family", ["metrics", "networks", "tasks", "figures", "simulation", "scores", "config"])
def test_other_stages_do_not_count_for_a_fit(counting_modules, family):
    for rule in ("fit.py", "fit.py ctdb.models.sae_gru"):
        assert not {name for name in counting_modules[rule] if name.split(".")[1:2] == [family]}


def test_models_that_train_together_do_not_count_for_a_fit_alone(counting_modules):
    assert not any("ctdb.training.together" in found for found in counting_modules.values())


def test_only_the_named_model_counts_for_its_fit(counting_modules):
    added = counting_modules["fit.py ctdb.models.sae_gru"] - counting_modules["fit.py"]
    assert {"ctdb.models.sae_gru", "ctdb.models.autoencoder"} <= added
    assert not {"ctdb.models.lds", "ctdb.models.sae_rnn", "ctdb.models.sae_node"} & added


def test_training_and_models_do_not_count_for_scores(counting_modules):
    found = counting_modules["score.py"]
    assert {"ctdb.metrics.r2", "ctdb.metrics.bits_per_spike", "ctdb.datasets.dataset"} <= found
    assert not {name for name in found if name.startswith(("ctdb.training", "ctdb.models", "ctdb.networks"))}


def test_words_of_messages_and_logs_never_count(counting_modules):
    for found in counting_modules.values():
        assert not found & {"ctdb.errors", "ctdb.jobs", "ctdb.provenance"}


TWICE = """
import sys
from ctdb import provenance
provenance.remember_in(sys.argv[1])
if len(sys.argv) > 3:  # a parse would be seen
    provenance._read_source = None
print(provenance.fingerprint(sys.argv[2], "ctdb.models.sae_gru"))
"""


def test_what_is_remembered_is_what_was_read(tmp_path):
    """In processes of their own, the last one unable to parse anything."""
    script = tmp_path / "script.py"
    script.write_text("from ctdb import scores\n")

    def told(*more: str) -> str:
        command = [sys.executable, "-c", TWICE, str(tmp_path / "memory"), str(script), *more]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    first = told()
    assert first == fingerprint(script, "ctdb.models.sae_gru")
    (kept,) = (tmp_path / "memory").glob("parsed-*.json")
    assert told("no parsing") == first

    script.write_text("from ctdb import registry\n")
    second = told()
    assert second == fingerprint(script, "ctdb.models.sae_gru") != first

    kept.write_text("{")  # as a full disk may leave it
    assert told() == second
    assert told("no parsing") == second
