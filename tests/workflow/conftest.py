"""One finished run of a small project, and copies of it to change."""

import shutil

import pytest

from project import Project, lay_out


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project whose run is done; not to be changed."""
    project = lay_out(tmp_path_factory.mktemp("finished") / "project")
    done = project.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture
def copy(finished, tmp_path) -> Project:
    """A copy of the finished project, to be changed."""
    shutil.copytree(finished.folder, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project")


@pytest.fixture
def fresh(tmp_path) -> Project:
    """A project in which nothing has run."""
    return lay_out(tmp_path / "project")
