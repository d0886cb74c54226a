"""Several datasets joined as the sessions of one model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ctdb.datasets.hdf5 import read
from ctdb.datasets.kind import DATASETS, DatasetKind, DatasetSettings, Source
from ctdb.datasets.multi_session import MultiSession, check_sessions
from ctdb.errors import DatasetError


class SessionsSettings(DatasetSettings):
    """Settings of a dataset of kind `sessions`."""

    kind: Literal["sessions"]
    datasets: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> "SessionsSettings":
        if len(set(self.datasets)) < len(self.datasets):
            raise ValueError("each session is listed once")
        return self


@DATASETS.register("sessions")
class Sessions(DatasetKind):
    """Sessions by the names of their datasets."""

    Settings = SessionsSettings

    @staticmethod
    def sources(settings: SessionsSettings) -> list[Source]:
        """The datasets."""
        return [("dataset", name) for name in settings.datasets]

    @staticmethod
    def prepare(settings: SessionsSettings, files: Sequence[Path | str]) -> MultiSession:
        """Join the datasets."""
        sessions = {name: read(file) for name, file in zip(settings.datasets, files, strict=True)}
        for name, session in sessions.items():
            if isinstance(session, MultiSession):
                raise DatasetError(f"dataset {name!r} holds several sessions itself; list its sessions instead")
        return check_sessions(MultiSession(sessions), " + ".join(sessions))
