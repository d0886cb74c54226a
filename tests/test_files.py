"""Whole files or none, and folders that one process holds at a time."""

import errno
import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import h5py
import numpy as np
import pytest

from ctdb import files
from ctdb.errors import WriteError
from ctdb.files import lock, read_hdf5, read_yaml, write_bytes, write_hdf5, write_text, write_yaml


def contents(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def python(code: str, *arguments, **options) -> subprocess.Popen:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **(pipes | options))


@pytest.fixture
def old(tmp_path):
    """File that a failing write must leave alone."""
    path = tmp_path / "out" / "result.bin"
    write_bytes(path, b"old")
    return path


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.bin"
    write_bytes(path, b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert contents(path.parent) == {"c.bin": b"\x00\x01"}


def test_a_file_is_replaced(old):
    write_bytes(str(old), b"new and longer")
    assert contents(old.parent) == {"result.bin": b"new and longer"}


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask_and_leave_it(tmp_path, mask, expected):
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "a", b"")
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == expected
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


def test_text_is_written_in_utf8(tmp_path):
    write_text(tmp_path / "a.txt", "λ = 0.5\n")
    assert (tmp_path / "a.txt").read_bytes() == "λ = 0.5\n".encode()


def test_yaml_is_read_back_with_its_order_types_and_letters(tmp_path):
    value = {"zeta": 1, "alpha": [1.5, None, True], "name": "Δ", "nested": {"b": 1e-05, "a": "1e-05"}}
    write_yaml(tmp_path / "spec.yaml", value)
    found = read_yaml(tmp_path / "spec.yaml")
    assert found == value
    assert list(found) == list(value)
    assert "Δ" in (tmp_path / "spec.yaml").read_text(encoding="utf-8")


def test_yaml_never_holds_an_object(tmp_path):
    with pytest.raises(Exception, match="cannot represent an object"):
        write_yaml(tmp_path / "spec.yaml", {"object": object()})
    assert list(tmp_path.iterdir()) == []


def test_hdf5_arrays_and_attributes_are_read_back(tmp_path):
    arrays = {
        "train_encod_data": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "train_rates": np.linspace(0, 1, 5),
        "number": np.int64(3),
    }
    write_hdf5(tmp_path / "a.h5", arrays, {"format": "f", "bin_s": 0.01})
    found, attributes = read_hdf5(tmp_path / "a.h5")
    assert set(found) == set(arrays)
    for key, value in arrays.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)
    assert attributes == {"format": "f", "bin_s": 0.01}


def test_an_attribute_may_be_longer_than_64_kilobytes(tmp_path):
    write_hdf5(tmp_path / "a.h5", {}, {"provenance": "x" * 200_000})
    assert len(read_hdf5(tmp_path / "a.h5")[1]["provenance"]) == 200_000


def test_keys_with_a_slash_lie_in_groups_and_are_read_back_with_it(tmp_path):
    arrays = {
        "monday/train_data": np.zeros((50, 40, 30), np.float32),
        "monday/train_rates": np.arange(6.0),
        "a/deep/er": np.arange(3),
        "train_rates": np.ones(2),
    }
    write_hdf5(tmp_path / "a.h5", arrays, {"format": "ctdb-x"})
    with h5py.File(tmp_path / "a.h5") as file:
        assert set(file) == {"a", "monday", "train_rates"}
        assert isinstance(file["monday"], h5py.Group)
        assert file["monday/train_data"].compression == "gzip"
        assert file["monday/train_rates"].compression is None
    found, _ = read_hdf5(tmp_path / "a.h5")
    assert set(found) == set(arrays)
    for key, value in arrays.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


ALIASES = {"train_output": "train_rates", "monday/gen_states": "monday/latents"}


def test_an_alias_is_a_soft_link_that_other_programs_read_and_we_do_not_list(tmp_path):
    arrays = {"train_rates": np.arange(6.0), "monday/latents": np.arange(4.0)}
    write_hdf5(tmp_path / "a.h5", arrays, {"format": "ctdb-output-1"}, ALIASES)
    with h5py.File(tmp_path / "a.h5") as file:
        for alias, key in ALIASES.items():
            assert isinstance(file.get(alias, getlink=True), h5py.SoftLink)
            assert file[alias] == file[key]  # the same object, not a copy
            np.testing.assert_array_equal(file[alias][()], arrays[key])
    assert set(read_hdf5(tmp_path / "a.h5")[0]) == set(arrays)


def test_equal_groups_and_aliases_give_equal_bytes(tmp_path):
    arrays = {"monday/train_data": np.arange(6.0), "train_rates": np.arange(2.0), "monday/latents": np.arange(4.0)}
    for name in ("one.h5", "two.h5"):
        write_hdf5(tmp_path / name, arrays, {"format": "ctdb-output-1"}, ALIASES)
    write_hdf5(tmp_path / "without.h5", arrays, {"format": "ctdb-output-1"})
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert (tmp_path / "one.h5").read_bytes() != (tmp_path / "without.h5").read_bytes()


@pytest.mark.parametrize("attributes", [{}, {"format": "other-1"}, {"format": 3}])
def test_links_of_foreign_files_are_followed(tmp_path, attributes):
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file["elsewhere"] = np.arange(5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw/spikes"] = np.arange(3)
        file["train_data"] = h5py.SoftLink("/raw/spikes")
        file["hard"] = file["raw/spikes"]
        file["outside"] = h5py.ExternalLink("source.h5", "/elsewhere")
        file.attrs.update(attributes)
    found, _ = read_hdf5(tmp_path / "a.h5")
    expected = {"raw/spikes": 3, "train_data": 3, "hard": 3, "outside": 5}
    assert {key: value.tolist() for key, value in found.items()} == {k: list(range(n)) for k, n in expected.items()}


def dangling(file):
    file["train_rates"] = h5py.SoftLink("/was/deleted")


def dangling_outside(file):
    file["train_rates"] = h5py.ExternalLink("was_deleted.h5", "/rates")


def named_type(file):
    file["type"] = np.dtype("f8")


def link_to_its_own_group(file):
    file["folder/train_rates"] = np.arange(2)
    file["folder/same"] = h5py.SoftLink("/folder")
    return ["folder/train_rates"]


def link_to_a_group_above(file):
    file["folder/deeper/train_rates"] = np.arange(2)
    file["folder/deeper/up"] = h5py.SoftLink("/folder")
    return ["folder/deeper/train_rates"]


def link_to_the_root(file):
    file.create_group("folder")["up"] = h5py.SoftLink("/")


@pytest.mark.parametrize(
    "add",
    [dangling, dangling_outside, named_type, link_to_its_own_group, link_to_a_group_above, link_to_the_root],
)
def test_what_holds_no_array_in_a_foreign_file_is_passed_over(tmp_path, add):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train_data"] = np.arange(3)
        expected = {"train_data", *(add(file) or ())}
    assert set(read_hdf5(tmp_path / "a.h5")[0]) == expected


def test_spike_counts_alone_are_compressed(tmp_path):
    counts = np.zeros((50, 40, 30), np.float32)
    write_hdf5(tmp_path / "a.h5", {"train_recon_data": counts, "train_rates": counts}, {})
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["train_recon_data"].compression == "gzip"
        assert file["train_recon_data"].id.get_storage_size() < counts.nbytes / 20
        assert file["train_rates"].compression is None


def test_equal_arrays_give_equal_bytes_in_every_process(tmp_path):
    code = (
        "import sys, numpy as np; from ctdb.files import write_hdf5\n"
        "write_hdf5(sys.argv[1], {'a_data': np.arange(6.).reshape(1, 2, 3), 'b': np.arange(3)}, {'x': 'y', 'n': 1})"
    )
    write_hdf5(tmp_path / "here.h5", {"a_data": np.arange(6.0).reshape(1, 2, 3), "b": np.arange(3)}, {"x": "y", "n": 1})
    other = python(code, tmp_path / "there.h5", env=os.environ | {"PYTHONHASHSEED": "17", "TZ": "Asia/Tokyo"})
    assert other.communicate()[1] == ""
    assert (tmp_path / "here.h5").read_bytes() == (tmp_path / "there.h5").read_bytes()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(old, monkeypatch, error):
    def interrupted(_):
        raise error

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(WriteError if isinstance(error, OSError) else type(error)):
        write_bytes(old, b"new")
    assert contents(old.parent) == {"result.bin": b"old"}


def test_a_process_killed_before_the_file_is_whole_leaves_the_old_one(old):
    code = (
        "import os, signal, sys; from ctdb.files import write_bytes\n"
        "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_bytes(sys.argv[1], b'n' * 100_000)"
    )
    process = python(code, old)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert old.read_bytes() == b"old"


@pytest.mark.parametrize("write", [lambda path: write_bytes(path, b"new"), lambda path: lock(path.parent).__enter__()])
def test_a_file_in_the_place_of_a_folder_is_named_with_the_remedy(tmp_path, write):
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(WriteError) as raised:
        write(tmp_path / "results" / "fits" / "spec.yaml")
    assert str(tmp_path / "results" / "fits") in str(raised.value)
    assert "cannot be written" in str(raised.value)
    assert "make the folder writable, or point `results` in the configuration to one that is" in str(raised.value)
    assert contents(tmp_path) == {"results": b"in the way"}


def test_a_folder_in_the_place_of_the_file_is_named_and_left(tmp_path):
    (tmp_path / "spec.yaml").mkdir()
    with pytest.raises(WriteError, match=r"spec\.yaml: cannot be written"):
        write_text(tmp_path / "spec.yaml", "a: 1\n")
    assert [file.name for file in tmp_path.iterdir()] == ["spec.yaml"]
    assert (tmp_path / "spec.yaml").is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_a_folder_without_permission_is_named_with_the_remedy(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match=r"Permission denied.*make the folder writable"):
        write_bytes(tmp_path / "a", b"")


@contextmanager
def tiny_disk(folder, options):
    """A file system of one megabyte; skips where one cannot be mounted."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda path, values: write_bytes(path, values.tobytes()),
        lambda path, values: write_hdf5(path, {"train_rates": values}, {}),
    ],
    ids=["bytes", "hdf5"],
)
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, write):
    with tiny_disk(tmp_path / "disk", "size=1m") as disk:
        path = disk / "result.h5"
        write_bytes(path, b"old")
        with pytest.raises(WriteError) as raised:
            write(path, np.random.default_rng(0).normal(size=400_000))
        assert f"{path}: cannot be written (No space left on device): the disk is full" in str(raised.value)
        assert "free some space and run the same command again" in str(raised.value)
        assert contents(disk) == {"result.h5": b"old"}
        write_bytes(path, b"new")
        assert contents(disk) == {"result.h5": b"new"}


def test_a_read_only_disk_is_named_with_the_remedy(tmp_path):
    with tiny_disk(tmp_path / "disk", "size=1m,ro") as disk:
        with pytest.raises(WriteError, match="the file system is read-only; point `results`"):
            write_bytes(disk / "fits" / "spec.yaml", b"new")
        with pytest.raises(WriteError, match="the file system is read-only; point `results`"), lock(disk):
            pass


def test_a_limit_on_the_size_of_files_leaves_the_old_file_and_no_other(old):
    code = (
        "import resource, sys; from ctdb.errors import WriteError; from ctdb.files import write_bytes\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try: write_bytes(sys.argv[1], b'n' * 100_000)\n"
        "except WriteError as error: print(error)"
    )
    found, trouble = python(code, old).communicate()
    assert trouble == ""
    assert f"{old}: cannot be written" in found
    assert "size limit of this process (ulimit -f); raise it" in found
    assert contents(old.parent) == {"result.bin": b"old"}


HOLD = """
import sys
from ctdb.files import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


@contextmanager
def process_that_locks(folder):
    process = python(HOLD, folder)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(stream) -> str:
    """Next line; empty if none comes in time, so that a broken lock fails a test and does not hang it."""
    return stream.readline() if select.select([stream], [], [], 20)[0] else ""


def waits(process) -> bool:
    """Whether the process says that it waits, and then does not go on."""
    select.select([process.stdout, process.stderr], [], [], 20)
    if select.select([process.stdout], [], [], 0.2)[0]:
        return False
    return "another process is still writing here" in line(process.stderr)


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("end", ["killed", "done"])
def test_a_lock_keeps_a_second_process_out_until_the_first_ends(tmp_path, end):
    with process_that_locks(tmp_path / "fit") as first:
        assert line(first.stdout) == "held\n"
        with process_that_locks(tmp_path / "fit") as second:
            assert waits(second)
            if end == "killed":
                os.kill(first.pid, signal.SIGKILL)
            else:
                go_on(first)
            assert line(second.stdout) == "held\n"


def test_a_lock_is_free_after_its_holder_was_killed(tmp_path):
    with process_that_locks(tmp_path) as holder:
        assert line(holder.stdout) == "held\n"
    with process_that_locks(tmp_path) as other:
        assert line(other.stdout) == "held\n"
        go_on(other)
        assert line(other.stdout) == "released\n"
        assert other.stderr.read() == ""


def test_a_lock_of_another_folder_is_no_hindrance(tmp_path):
    with lock(tmp_path / "one"), process_that_locks(tmp_path / "two") as other:
        assert line(other.stdout) == "held\n"


def test_a_lock_ends_with_its_block_however_that_ends(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path / "fit"):
        _ = 1 / 0
    with process_that_locks(tmp_path / "fit") as other:
        assert line(other.stdout) == "held\n"


@pytest.mark.parametrize(("host", "ends"), [(os.uname().nodename, True), ("another-node", False)])
def test_a_process_whose_run_is_gone_on_this_host_writes_nothing(host, ends, tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    code = f"from ctdb.files import write_text; write_text({str(tmp_path / 'out.txt')!r}, 'late')"
    environment = os.environ | {"CTDB_RUN": f"{host}:{int(gone.stdout)}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment)
    assert (done.returncode != 0) == ends
    assert (tmp_path / "out.txt").exists() != ends


def test_what_a_killed_process_left_behind_is_cleared_by_the_next_write(tmp_path):
    (tmp_path / ".out.txt.abc123.partial").write_text("half")
    (tmp_path / ".other.txt.abc123.partial").write_text("not ours")
    write_text(tmp_path / "out.txt", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.txt.abc123.partial", "out.txt"]


def test_a_file_system_without_locks_is_no_hindrance(tmp_path, monkeypatch, capfd):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with lock(tmp_path / "fit"):
        pass
    assert "has no locks" in capfd.readouterr().err


def test_what_is_locked_by_another_can_be_read(tmp_path):
    """HDF5 would take a lock for reading, which fails where a file system has none."""
    write_hdf5(tmp_path / "x.h5", {"a": np.ones(3)}, {})
    with open(tmp_path / "x.h5") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read_hdf5(tmp_path / "x.h5")[0]["a"].sum() == 3


def test_a_job_with_a_claim_does_not_wait_for_ever_for_the_lock_of_a_lost_node(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(files, "LOOK_S", 0.5)
    monkeypatch.setattr(files, "_claim", tmp_path / "log.job")
    with process_that_locks(tmp_path / "fit") as holder:
        assert line(holder.stdout) == "held\n"
        with lock(tmp_path / "fit"):
            assert holder.poll() is None
        assert "its node may be lost" in capfd.readouterr().err
        go_on(holder)
        assert line(holder.stdout) == "released\n"
        with lock(tmp_path / "fit"), process_that_locks(tmp_path / "fit") as other:
            assert waits(other)
