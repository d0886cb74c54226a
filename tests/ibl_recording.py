"""A synthetic recording on disk, its manifest, and ways to change its files."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ctdb.datasets.ibl.synthetic import SyntheticSettings, write_session

FORMAT = "ctdb-ibl-1"


class Recording:
    """A cache folder with synthetic sessions, and a manifest beside it."""

    def __init__(self, folder: Path, *sessions: SyntheticSettings):
        self.cache, self.manifest = folder / "cache", folder / "manifest.json"
        for settings in sessions:
            write_session(self.cache, settings)
        self.write(manifest_of(self.cache))

    @property
    def files(self) -> list[Path]:
        """What `prepare` is given."""
        return [self.manifest, self.cache]

    @property
    def content(self) -> dict:
        """The manifest."""
        return json.loads(self.manifest.read_text())

    def write(self, content: dict) -> None:
        """Replace the manifest."""
        self.manifest.write_text(json.dumps(content))

    def path(self, dataset: str, probe: str = "", session: int = 0) -> Path:
        """Path of a file."""
        return self.cache / self._record(self.content, dataset, probe, session)["path"]

    def change(self, dataset: str, edit: Callable, probe: str = "", session: int = 0) -> None:
        """Replace a file by what `edit` makes of its array, table (a data frame) or text, its record too."""
        path = self.path(dataset, probe, session)
        if path.suffix == ".npy":
            np.save(path, edit(np.load(path)))
        elif path.suffix == ".pqt":
            edit(pd.read_parquet(path)).to_parquet(path)
        else:
            path.write_text(edit(path.read_text()))
        content = self.content
        self._record(content, dataset, probe, session).update(size=path.stat().st_size, md5=md5(path))
        self.write(content)

    def forget(self, dataset: str, probe: str = "", session: int = 0) -> None:
        """Take a file out of the manifest."""
        content = self.content
        content["sessions"][session]["files"].remove(self._record(content, dataset, probe, session))
        self.write(content)

    def update(self, dataset: str, probe: str = "", session: int = 0, **fields) -> None:
        """Change fields of a file's record."""
        content = self.content
        self._record(content, dataset, probe, session).update(fields)
        self.write(content)

    def _record(self, content: dict, dataset: str, probe: str, session: int) -> dict:
        files = content["sessions"][session]["files"]
        (record,) = [one for one in files if one["dataset"] == dataset and probe in one["collection"]]
        return record


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def manifest_of(cache: Path) -> dict:
    """Manifest of all sessions in a cache, from its tables."""
    sessions, datasets, insertions = (pd.read_parquet(cache / f"{name}.pqt") for name in ("sessions", "datasets", "insertions"))  # fmt: skip
    found = []
    for eid, session in sessions.iterrows():
        root = f"{session.lab}/Subjects/{session.subject}/{session.date}/{session.number:03d}"
        files = []
        for id_, row in datasets.loc[eid].iterrows():
            *folders, name = row.rel_path.split("/")
            files.append(
                {
                    "dataset": name,
                    "collection": "/".join(folder for folder in folders if "#" not in folder),
                    "revision": "".join(folder.strip("#") for folder in folders if "#" in folder),
                    "id": id_,
                    "path": f"{root}/{row.rel_path}",
                    "size": int(row.file_size),
                    "md5": row["hash"],
                }
            )
        probes = [{"pid": pid, "name": row["name"]} for pid, row in insertions.loc[eid].iterrows()]
        about = {"eid": eid, "subject": session.subject, "lab": session.lab, "date": str(session.date)}
        found.append(about | {"number": int(session.number), "probes": probes, "files": files})
    return {"format": FORMAT, "tag": "", "sessions": found}
