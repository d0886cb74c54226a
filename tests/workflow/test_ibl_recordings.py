"""Recordings in a run: fetched once, by the manifest from then on, and only if something is made from them."""

import shutil
import subprocess
import sys

import pytest

from alyx import REVISION, SECRETS, TOKEN, Session, serving, write_cache
from ctdb.datasets.ibl.manifest import read_manifest, verified, write_manifest
from project import Project, lay_out

BOB = Session("bob", 2, probes={name: {"pykilosort": ("2023-01-01", REVISION)} for name in ("probe00", "probe01")})
CAT = Session("cat")
CONFIG = """
results: results
recordings:
  bob: {kind: ibl, sessions: [{eid: BOB, probe: probe00}], base_url: URL, data_url: URL/public, timeout_s: 5}
  unused: {kind: ibl, query: {tag: release}, base_url: "http://127.0.0.1:9", data_url: "http://127.0.0.1:9"}
datasets:
  spikes: {kind: recorded, recording: bob}
models:
  lds: {kind: lds, latent_size: 2, encoder_size: 2, training: {max_epochs: 1}}
fits:
  - {datasets: [spikes], models: [lds]}
"""
KIND = '''"""For the tests: counts drawn from the bytes of a recording's spike times."""

from typing import Literal

import numpy as np

from ctdb.datasets.dataset import SpikeDataset, Split
from ctdb.datasets.ibl.manifest import read_manifest, verified
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings


class RecordedSettings(DatasetSettings):
    kind: Literal["recorded"]
    recording: str


@DATASETS.register("recorded")
class Recorded(DatasetKind):
    Settings = RecordedSettings

    @staticmethod
    def sources(settings):
        return [("recording", settings.recording)]

    @staticmethod
    def prepare(settings, files):
        manifest, folder = files
        (file,) = [f for f in read_manifest(manifest).sessions[0].files if f.dataset == "spikes.times.npy"]
        counts = np.frombuffer(verified(file, folder).read_bytes()[:900], np.uint8).reshape(30, 10, 3) % 3
        parts = np.split(counts.astype(np.float32), 3)
        return SpikeDataset(
            {name: Split(encod_data=part, recon_data=part) for name, part in zip(("train", "valid", "test"), parts)}, 0.02
        )
'''


def project_of(folder, config: str, url: str = "http://127.0.0.1:9") -> Project:
    """A project with a home, a cache folder and the credentials of the made-up user."""
    project = lay_out(folder / "project", config.replace("URL", url).replace("BOB", BOB.eid))
    (project.folder / "src/ctdb/datasets/recorded.py").write_text(KIND)
    (folder / "home").mkdir(exist_ok=True)
    project.environment |= {
        "HOME": str(folder / "home"),
        "CTDB_IBL_CACHE": str(folder / "cache"),
        "ALYX_TOKEN": TOKEN,
        "XDG_CACHE_HOME": str(folder / "xdg"),
    }
    return project


@pytest.fixture(scope="module")
def server():
    with serving([BOB, CAT]) as running:
        yield running


@pytest.fixture(scope="module")
def done(server, tmp_path_factory):
    """A project whose recording is fetched and whose data set is made; not to be changed."""
    project = project_of(tmp_path_factory.mktemp("recordings"), CONFIG, server.url)
    run = project.run("datasets")
    assert run.returncode == 0, run.stdout + run.stderr
    project.told = run.stdout + run.stderr
    return project


@pytest.fixture
def changed(done, tmp_path):
    """A copy, to be changed."""
    shutil.copytree(done.folder.parent, tmp_path / "all", symlinks=True)
    project = Project(tmp_path / "all/project")
    project.environment |= done.environment | {
        "PYTHONPATH": str(project.folder / "src"),
        "HOME": str(tmp_path / "all/home"),
        "CTDB_IBL_CACHE": str(tmp_path / "all/cache"),
    }
    return project


def test_a_recording_is_fetched_to_the_cache_folder_and_its_dataset_made(done, server):
    manifest = read_manifest(done.folder / "results/recordings/bob.json")
    (session,) = manifest.sessions
    assert session.eid == BOB.eid
    for file in session.files:
        assert (
            verified(file, done.folder.parent / "cache").read_bytes()
            == BOB.files[file.path.removeprefix(f"{BOB.folder}/")]
        )
    assert (done.folder / "results/datasets/spikes.h5").exists()
    assert not any("bob" not in path for path in server.downloads())
    assert [path.name for path in (done.folder / "results/recordings").iterdir()] == ["bob.json"]
    log = (done.folder / "results/logs/recordings/bob.log").read_text()
    assert "9/9 files" in log


def test_no_credential_and_no_path_is_left_anywhere(done):
    assert not any((done.folder.parent / "home").rglob("*.one*"))
    outputs = [done.folder / "results/recordings/bob.json", done.folder / "results/datasets/spikes.h5"]
    for path in done.folder.parent.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in SECRETS), path
            assert path not in outputs or str(done.folder.parent).encode() not in content, path
    assert not any(secret in done.told for secret in SECRETS)


def test_a_second_run_of_another_project_writes_the_same_bytes(done, server, tmp_path):
    other = project_of(tmp_path, CONFIG, server.url)
    assert other.run("datasets").returncode == 0
    for name in ("recordings/bob.json", "datasets/spikes.h5"):
        assert (other.folder / "results" / name).read_bytes() == (done.folder / "results" / name).read_bytes()


def test_what_is_done_is_not_done_again_however_and_wherever_it_was_fetched(changed, tmp_path):
    assert changed.planned("datasets") == {}
    shutil.move(tmp_path / "all/cache", tmp_path / "moved")
    changed.environment["CTDB_IBL_CACHE"] = str(tmp_path / "moved")
    changed.edit("config.yaml", "timeout_s: 5", "timeout_s: 7, n_parallel: 2")
    assert changed.planned("datasets") == {}
    changed.edit("config.yaml", "{tag: release}", "{tag: another}")
    assert changed.planned("datasets") == {}


def test_a_dataset_made_again_finds_the_files_where_they_are_now(changed, tmp_path):
    shutil.move(tmp_path / "all/cache", tmp_path / "moved")
    before = (changed.folder / "results/datasets/spikes.h5").read_bytes()
    (changed.folder / "results/datasets/spikes.h5").unlink()
    run = changed.run("datasets", "--show-failed-logs")
    assert run.returncode != 0
    assert "spikes.times.npy: is not in the cache folder" in run.stdout + run.stderr
    assert "fetch it again: `snakemake --forcerun ibl_fetch`" in run.stdout + run.stderr
    changed.environment["CTDB_IBL_CACHE"] = str(tmp_path / "moved")
    assert changed.outputs_by_rule("datasets") == {"dataset": ["results/datasets/spikes.h5"], "datasets": []}
    assert changed.run("datasets").returncode == 0
    assert (changed.folder / "results/datasets/spikes.h5").read_bytes() == before


def test_another_version_is_another_manifest_and_another_dataset(changed, server):
    before = (changed.folder / "results/datasets/spikes.h5").read_bytes()
    changed.edit("config.yaml", "timeout_s: 5", "timeout_s: 5, revision: 2023-01-01")
    assert set(changed.outputs_by_rule("datasets")) == {"ibl_fetch", "dataset", "datasets"}
    run = changed.run("datasets")
    assert run.returncode == 0, run.stdout + run.stderr
    files = read_manifest(changed.folder / "results/recordings/bob.json").sessions[0].files
    assert {file.revision for file in files} == {"", "2023-01-01"}
    assert (changed.folder / "results/datasets/spikes.h5").read_bytes() != before


def test_a_fetch_that_fails_says_why_in_one_line_and_leaves_nothing(server, tmp_path, monkeypatch):
    project = project_of(tmp_path, CONFIG, server.url)
    monkeypatch.setitem(server.faults, "spikes.clusters", "wrong")
    run = project.run("datasets", "--show-failed-logs")
    assert run.returncode != 0
    (line,) = [line for line in (run.stdout + run.stderr).splitlines() if "error: " in line]
    assert f"{BOB.folder}/alf/probe00/pykilosort/#{REVISION}#/spikes.clusters.npy: has md5 " in line
    assert "Traceback" not in run.stdout + run.stderr
    assert not (project.folder / "results/recordings/bob.json").exists()
    assert not (project.folder / "results/datasets/spikes.h5").exists()
    assert not any("clusters" in path.name for path in (tmp_path / "cache").rglob("*"))
    assert not (tmp_path / "cache/.partial").exists()
    monkeypatch.delitem(server.faults, "spikes.clusters")
    server.asked.clear()
    assert project.run("datasets").returncode == 0
    assert len(server.downloads()) == 5  # four of nine were whole


def test_without_credentials_the_job_says_what_to_set(server, tmp_path):
    project = project_of(tmp_path, CONFIG, server.url)
    del project.environment["ALYX_TOKEN"]
    run = project.run("recordings", "--show-failed-logs")
    assert run.returncode != 0
    assert "no credentials; set ALYX_TOKEN" in run.stdout + run.stderr


def test_a_manifest_of_somebody_else_gives_their_files(done, server, tmp_path):
    config = CONFIG.replace("sessions: [{eid: BOB, probe: probe00}]", "manifest: $MINE/theirs.json")
    project = project_of(tmp_path, config, server.url)
    project.environment["MINE"] = str(project.folder / "data")
    run = project.run("datasets")
    assert run.returncode != 0
    assert "recordings.bob.manifest: there is no file" in run.stdout + run.stderr
    shutil.copy(done.folder / "results/recordings/bob.json", project.folder / "data/theirs.json")
    run = project.run("datasets")
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("recordings/bob.json", "datasets/spikes.h5"):
        assert (project.folder / "results" / name).read_bytes() == (done.folder / "results" / name).read_bytes()
    assert project.planned("datasets") == {}
    theirs = read_manifest(project.folder / "data/theirs.json")
    write_manifest(project.folder / "data/theirs.json", theirs.model_copy(update={"tag": "another"}))
    assert set(project.outputs_by_rule("datasets")) == {"ibl_fetch", "dataset", "datasets"}


LOCAL = CONFIG.replace(
    "{kind: ibl, sessions: [{eid: BOB, probe: probe00}], base_url: URL, data_url: URL/public, timeout_s: 5}",
    "{kind: ibl_local, cache_dir: $MINE, sessions: [{eid: BOB, probe: probe00}]}",
)


def test_a_folder_of_the_user_gives_the_same_manifest_and_dataset_without_a_network(done, tmp_path):
    project = project_of(tmp_path, LOCAL)
    project.environment["MINE"] = str(tmp_path / "mine")
    del project.environment["ALYX_TOKEN"]
    run = project.run("datasets")
    assert run.returncode != 0
    assert f"recordings.bob.cache_dir: there is no folder {tmp_path}/mine; correct the path" in run.stdout + run.stderr
    write_cache(tmp_path / "mine", [BOB, CAT])
    run = project.run("datasets")
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("recordings/bob.json", "datasets/spikes.h5"):
        assert (project.folder / "results" / name).read_bytes() == (done.folder / "results" / name).read_bytes()


def test_a_recording_that_is_not_there_is_refused_and_one_that_is_not_used_is_not_fetched(tmp_path):
    project = project_of(tmp_path, CONFIG)
    assert project.planned() == {
        "ibl_fetch": 1,
        "dataset": 1,
        "fit": 1,
        "score_fit": 1,
        "score_anchors": 1,
        "gather_scores": 1,
        "reproduction": 1,
        "report": 1,
    }
    project.edit("config.yaml", "recording: bob", "recording: bobby")
    run = project.run("--dry-run")
    assert run.returncode != 0
    assert "datasets.spikes.recording: no recording is called 'bobby'; did you mean 'bob'?" in run.stdout + run.stderr


def test_planning_imports_no_client(tmp_path):
    project = project_of(tmp_path, CONFIG)
    looked_at = "from ctdb.workflow import plan; import sys; plan(['config.yaml'], {}, ''); print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", looked_at],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(run.stdout.split())
    assert "ctdb.datasets.ibl.recording" in modules
    assert not modules & {"one", "boto3", "requests", "ctdb.datasets.ibl.access", "ctdb.datasets.ibl.fetch"}


SYNTHETIC = CONFIG.replace(
    "{kind: ibl, sessions: [{eid: BOB, probe: probe00}], base_url: URL, data_url: URL/public, timeout_s: 5}",
    "{kind: ibl_synthetic, n_trials: 12, n_units: 6, probes: 1, seed: 3}",
)


def test_a_synthetic_recording_is_made_and_fetched_like_a_real_one(tmp_path):
    made = {}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        project = project_of(tmp_path / name, SYNTHETIC)
        del project.environment["ALYX_TOKEN"]
        run = project.run("datasets")
        assert run.returncode == 0, run.stdout + run.stderr
        made[name] = (project.folder / "results/recordings/bob.json").read_bytes()
        for file in read_manifest(project.folder / "results/recordings/bob.json").sessions[0].files:
            verified(file, project.folder / "results/recordings/bob/cache")
        assert project.planned("datasets") == {}
    assert made["a"] == made["b"]
    project.edit("config.yaml", "seed: 3", "seed: 4")
    assert set(project.outputs_by_rule("datasets")) == {"ibl_synthetic", "ibl_fetch", "dataset", "datasets"}
