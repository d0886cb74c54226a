"""What a recording is in the configuration: which sessions, in which version, and where their files go."""

import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ctdb.datasets.ibl.manifest import CachePath, Md5
from ctdb.settings import Count, NonEmpty, Positive, Seed, Settings

OPENALYX = "https://openalyx.internationalbrainlab.org"
OPEN_FILES = "https://ibl.flatironinstitute.org/public"
CACHE = "$CTDB_IBL_CACHE"


def _undated(value: Any) -> Any:
    """Revisions are dates, which YAML reads as such where they are not quoted."""
    return value.isoformat() if isinstance(value, datetime.date) else value


Uuid = Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")]
Revision = Annotated[str, BeforeValidator(_undated), Field(pattern=r"^[\w.-]*$")]
"""Name of a revision, which is a date; "" for files of none."""
Word = Annotated[str, Field(pattern=r"^[\w.-]+$")]
Url = Annotated[str, Field(pattern=r"^https?://[^/]+"), AfterValidator(lambda url: url.rstrip("/"))]


class SessionChoice(Settings):
    """One probe, by `pid` or by `eid` and `probe`; or all probes of the session `eid`."""

    pid: Uuid | None = None
    eid: Uuid | None = None
    probe: Word | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "SessionChoice":
        if (self.pid is None) == (self.eid is None) or (self.pid and self.probe):
            raise ValueError("give `pid`, or `eid` and `probe`, or `eid` alone for all its probes")
        return self


class Query(Settings):
    """What probes must be to be taken: of a release, in a region (Allen acronym) or one in it, of an animal."""

    tag: Word | None = None
    region: str | None = Field(None, min_length=1)
    subject: Word | None = None

    @model_validator(mode="after")
    def _something(self) -> "Query":
        if not (self.tag or self.region or self.subject):
            raise ValueError("give at least one of `tag`, `region` and `subject`; all of Alyx is too much")
        return self


class RecordingSettings(Settings):
    """Settings that every kind of recording has.

    Spikes and clusters must be of exactly this `revision`. The trials are of `trials_revision`, or of the one that Alyx
    marks as the default. `expect_md5` pins files by their path in the cache folder.
    """

    kind: str
    sorter: Literal["pykilosort", "iblsorter"] = "pykilosort"
    revision: Revision = "2024-05-06"
    trials_revision: Revision | None = None
    expect_md5: dict[CachePath, Md5] = {}
    continue_on_error: list[Literal["missing", "checksum"]] = []


class IblSettings(RecordingSettings):
    """Settings of a recording of kind `ibl`: sessions of an Alyx database, public by default."""

    kind: Literal["ibl"]
    sessions: NonEmpty[SessionChoice] | None = None
    query: Query | None = None
    manifest: str | None = None
    base_url: Url = OPENALYX
    data_url: Url = OPEN_FILES
    cache_dir: str = Field(CACHE, min_length=1)
    n_parallel: int = Field(4, ge=1, le=16)
    timeout_s: Positive = 60.0

    @model_validator(mode="after")
    def _one_choice(self) -> "IblSettings":
        if sum(choice is not None for choice in (self.sessions, self.query, self.manifest)) != 1:
            raise ValueError("give one of `sessions`, `query` and `manifest`")
        if self.manifest is not None and self.expect_md5:
            raise ValueError("`expect_md5`: a manifest says itself what its files must be; leave it out")
        if "@" in self.base_url + self.data_url:  # told without the address, which an error of the key would repeat
            raise ValueError(
                "credentials do not belong in an address of the configuration; set ALYX_TOKEN, or ALYX_LOGIN and "
                "ALYX_PASSWORD, in the environment"
            )
        return self


class IblLocalSettings(RecordingSettings):
    """Settings of a recording of kind `ibl_local`: a folder of files and tables of ONE, by default all its sessions."""

    kind: Literal["ibl_local"]
    cache_dir: str = Field(min_length=1)
    sessions: NonEmpty[SessionChoice] | None = None


class IblSyntheticSettings(RecordingSettings):
    """Settings of a recording of kind `ibl_synthetic`: a made-up session, for tests and for a first look."""

    kind: Literal["ibl_synthetic"]
    n_trials: int = Field(200, ge=10)
    n_units: int = Field(30, ge=4)
    probes: Count = 2
    seed: Seed = 0


RECORDINGS: dict[str, type[RecordingSettings]] = {
    "ibl": IblSettings,
    "ibl_local": IblLocalSettings,
    "ibl_synthetic": IblSyntheticSettings,
}
"""Settings of each kind of recording."""

SYNTHETIC = ("n_trials", "n_units", "probes", "seed")
"""Keys of the session that is made up; the others choose from it."""
HOW = ("n_parallel", "timeout_s", "cache_dir", "manifest")
"""Keys that say how or where, and not what: a change of them fetches nothing again."""
