"""The kernels' build: without a compiler, twice, stale, broken, by many at once, and where nothing can be written."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctdb.recurrent import cpu
from ctdb.recurrent.cpu import build

SMALL = '#include <cstdint>\nextern "C" int64_t vector_bytes() { return %d; }\n'

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX") or "c++", *build.COMPILERS))), reason="no C++ compiler"
)

USE = """
import json
import torch
from ctdb.errors import ConfigError
from ctdb.recurrent import GRUCell, Noise, choose, eager, initialise, scan, use_backend
from ctdb.recurrent.cpu import build
cell = GRUCell(3, 5)
initialise(cell, torch.Generator().manual_seed(0))
inputs, start = torch.linspace(-1, 1, 72).view(4, 6, 3), torch.zeros(4, 5)
found = [states := scan(cell, start, inputs), *torch.autograd.grad(states.sum(), [*cell.parameters()])]
expected = [states := eager.scan(cell, start, inputs).states, *torch.autograd.grad(states.sum(), [*cell.parameters()])]
for one, other in zip(found, expected, strict=True):
    torch.testing.assert_close(one, other)
kept = Noise(torch.Generator().manual_seed(0), torch.arange(9)).keep("x", 5, 7, 0.5).sum().item()
try:
    with use_backend("cpu"):
        error = None
except ConfigError as raised:
    error = str(raised)
name, reason = choose(torch.device("cpu"))
print(json.dumps({"name": name, "reason": reason, "error": error, "kept": kept}))
"""

LIBRARY = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("build", sys.argv[1])  # alone, which is quick
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
build.SOURCE = Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(build.library()._name, build.library().vector_bytes())
"""


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Variables of a process whose only place for builds is below `tmp_path`."""
    for name in ("CXX", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return {**os.environ, "CTDB_CACHE": str(tmp_path / "cache"), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def here(environment, monkeypatch):
    """The same for this process, whose library is not yet loaded; it builds a small source."""
    for name in ("CTDB_CACHE", "TMPDIR"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.setattr(build.tempfile, "tempdir", environment["TMPDIR"])
    monkeypatch.setattr(cpu, "_reason", cpu._UNKNOWN)
    source = Path(environment["TMPDIR"], "small.cpp")
    source.write_text(SMALL % 1)
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setattr(build, "library", build.library.__wrapped__)
    monkeypatch.setattr(cpu, "library", build.library)
    return Path(environment["CTDB_CACHE"])


def python(code, environment, *arguments, **options):
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def used(environment):
    return json.loads(python(USE, environment))


def compiler(folder, script):
    """An executable that stands in for a compiler."""
    folder.mkdir(exist_ok=True)
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


def built(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------ without a compiler


def test_without_a_compiler_everything_runs_in_torch(environment):
    made = used(environment | {"CXX": "/nonexistent/c++"})
    assert made["name"] == "torch"
    assert "no C++ compiler found (/nonexistent/c++)" in made["reason"]
    assert "no C++ compiler found (/nonexistent/c++)" in made["error"]
    assert "install a C++ compiler, or choose 'auto' or 'torch'" in made["error"]


def test_all_the_compilers_that_were_looked_for_are_named(here, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cpu.why_not() == "no C++ compiler found (c++, g++, clang++)"


def test_with_a_compiler_that_fails_everything_runs_in_torch(environment, tmp_path):
    script = 'case "$1" in --version) echo broken 1.0;; *) echo "cannot find crt1.o" >&2; exit 1;; esac'
    made = used(environment | {"CXX": str(compiler(tmp_path / "bin", script))})
    assert made["name"] == "torch"
    for text in (made["reason"], made["error"]):
        assert "cannot compile kernels.cpp: cannot find crt1.o" in text
    assert built(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "does not run"),
        ('[ "$1" = --version ] || kill -9 $$', "cannot compile small.cpp"),
        ('[ "$1" = --version ] || exec sleep 60', "timed out after 0.5 seconds"),
        ('[ "$1" = --version ] || exit 0', "cannot be loaded .*; remove it and try again"),
    ],
    ids=["no version", "killed", "hangs", "writes nothing"],
)
def test_a_compiler_that_misbehaves_is_named(here, tmp_path, monkeypatch, script, reason):
    path = compiler(tmp_path / "bin", script)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setattr(build, "SECONDS", 0.5)
    with pytest.raises(build.BuildError, match=reason) as raised:
        build.library()
    assert str(path) in str(raised.value) or "remove it" in str(raised.value)
    assert re.search(reason, cpu.why_not())
    assert not list(here.glob("building_*"))


# ---------------------------------------------------------------------------------------------------------- once, not stale


@needs_compiler
def test_the_kernels_are_built_once_and_used_again(environment, tmp_path):
    quick = compiler(tmp_path / "bin", f'exec {shutil.which("c++")} "$@" -O0')  # what is tested is not their speed
    environment["CXX"] = str(quick)
    first = used(environment)
    assert first["name"] == "cpu", first
    assert first["error"] is None
    (library,) = (tmp_path / "cache").iterdir()
    assert library.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    before = library.stat()
    assert used(environment) == first
    after = library.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (before.st_mtime_ns, before.st_ino, before.st_size)
    assert built(tmp_path / "cache") == [library.name]


@needs_compiler
def test_whatever_decides_the_build_changes_its_name(here, tmp_path, monkeypatch):
    def name():
        return Path(build.library()._name).name

    names = [name()]
    build.SOURCE.write_text(SMALL % 2)
    names.append(name())
    assert build.library().vector_bytes() == 2
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DNOTHING"))
    names.append(name())
    processor = build._processor()
    monkeypatch.setattr(build, "_processor", lambda: processor + " and more")
    names.append(name())
    real = shutil.which("c++")
    for version in ("9.1", "9.2"):
        path = compiler(tmp_path / "bin", f'[ "$1" = --version ] && exec echo {version} || exec {real} "$@"')
        monkeypatch.setenv("CXX", str(path))
        names.append(name())
    assert len(set(names)) == len(names) == len(built(here))
    monkeypatch.undo()
    assert build._processor() == processor  # the same within one machine


@needs_compiler
def test_going_back_to_an_old_source_takes_the_old_build(here):
    first = build.library()._name
    stamp = os.stat(first).st_mtime_ns
    build.SOURCE.write_text(SMALL % 2)
    second = build.library()._name
    build.SOURCE.write_text(SMALL % 1)
    os.utime(build.SOURCE)  # content decides, not time
    assert build.library()._name == first != second
    assert os.stat(first).st_mtime_ns == stamp


@needs_compiler
@pytest.mark.parametrize("content", [b"", b"half a libra", b"\x7fELF" + 200 * b"\0"], ids=["empty", "text", "cut"])
def test_a_broken_library_is_named_with_its_remedy(here, content):
    here.mkdir()
    path = here / f"ctdb_kernels_{build._identity(build._compiler())}.so"
    path.write_bytes(content)
    with pytest.raises(build.BuildError, match=r"cannot be loaded .*; remove it and try again") as raised:
        build.library()
    assert str(path) in str(raised.value)
    assert "remove it and try again" in cpu.why_not()
    path.unlink()
    assert build.library().vector_bytes() == 1


@needs_compiler
def test_a_draft_that_a_killed_build_left_is_never_used(here):
    here.mkdir()
    (here / "building_abc.so").write_bytes(b"half")
    assert build.library().vector_bytes() == 1
    assert built(here)[0] == "building_abc.so"


# ------------------------------------------------------------------------------------------------------------- many at once


@needs_compiler
def test_builds_at_once_all_succeed_and_leave_one_library(environment, tmp_path):
    source = tmp_path / "small.cpp"
    source.write_text(SMALL % 64)
    log = tmp_path / "log"
    # slow, and in two writes, so that they overlap and half a file is there to be seen
    script = (
        f'[ "$1" = --version ] && exec echo 1\necho run >> {log}\nsleep 0.3\n{shutil.which("c++")} "$@" && sleep 0.3'
    )
    environment["CXX"] = str(compiler(tmp_path / "bin", script))
    command = [sys.executable, "-c", LIBRARY, build.__file__, str(source)]
    jobs = [subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(4)]
    assert [job.stdout.readline() for job in jobs] == ["ready\n"] * 4
    for job in jobs:
        job.stdin.write("go\n")
        job.stdin.flush()
    found = [job.communicate(timeout=60) for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4, found
    (library,) = (tmp_path / "cache").iterdir()
    assert {out.strip() for out, _ in found} == {f"{library} 64"}
    assert len(log.read_text().split()) > 1  # they did build at once


# ------------------------------------------------------------------------------------------------------------ where to write


@needs_compiler
@pytest.mark.parametrize("cache", ["a file", "below a file", "/proc/ctdb"])
def test_where_the_cache_cannot_be_written_a_temporary_folder_serves(here, tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("")
    chosen = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "cache"}.get(cache, Path(cache))
    monkeypatch.setenv("CTDB_CACHE", str(chosen))
    path = Path(build.library()._name)
    assert path.parent.parent == Path(os.environ["TMPDIR"])
    assert path.parent.stat().st_mode & 0o777 == 0o700


@needs_compiler
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_cache_is_passed_over(here):
    here.mkdir(mode=0o500)
    assert Path(build.library()._name).parent.parent == Path(os.environ["TMPDIR"])


@needs_compiler
def test_a_folder_of_somebody_else_is_not_trusted(here, monkeypatch):
    here.mkdir()
    theirs = here.stat().st_ino
    real = build._mine
    monkeypatch.setattr(build, "_mine", lambda folder: folder.stat().st_ino != theirs and real(folder))
    assert Path(build.library()._name).parent.parent == Path(os.environ["TMPDIR"])
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert not real(here)


def test_no_folder_at_all_is_said_with_the_remedy(here, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CTDB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "file"))
    monkeypatch.setattr(build, "_compiler", lambda: "c++")
    with pytest.raises(build.BuildError, match=r"no folder to keep the compiled kernels in: .*set CTDB_CACHE"):
        build._folder()


@needs_compiler
def test_the_cache_of_the_user_is_the_default(here, tmp_path, monkeypatch):
    monkeypatch.delenv("CTDB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert build._folder() == tmp_path / "home" / ".cache" / "ctdb"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build._folder() == tmp_path / "xdg" / "ctdb"


@needs_compiler
def test_the_cache_may_be_the_working_folder(here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CTDB_CACHE", ".")
    assert build.library().vector_bytes() == 1


def test_a_full_disk_is_a_reason_to_run_in_torch(here, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "_identity", lambda compiler: "0")
    monkeypatch.setattr(build, "_compiler", lambda: "c++")
    monkeypatch.setattr(build.tempfile, "mkstemp", full)
    assert "No space left" in cpu.why_not()


def test_a_user_without_a_home_runs_in_torch_or_keeps_builds_elsewhere(here, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("CTDB_CACHE")
    monkeypatch.setattr(build.Path, "home", homeless)
    monkeypatch.setattr(build, "_compiler", lambda: "c++")
    with contextlib.suppress(build.BuildError):
        build._folder()
