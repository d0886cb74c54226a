"""Several sessions that one model is fitted to: each a dataset with neurons, trials and lengths of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from ctdb.datasets.dataset import SpikeDataset, check
from ctdb.errors import DatasetError


@dataclass(frozen=True)
class MultiSession:
    """Sessions by name.

    Attributes
    ----------
    sessions
        Name to dataset, in a fixed order.
    """

    sessions: Mapping[str, SpikeDataset]

    @property
    def bin_s(self) -> float | None:
        """Width of a bin in seconds, the same in all sessions."""
        return next(iter(self.sessions.values())).bin_s

    @property
    def report_split(self) -> str:
        """Split that scores are reported on: `test`, or `valid` where a session has no test trials."""
        return "test" if all("test" in session.splits for session in self.sessions.values()) else "valid"


def check_sessions(dataset: MultiSession, where: str) -> MultiSession:
    """Return `dataset` if its sessions are whole and can share a model.

    Raises
    ------
    DatasetError
        If a session is not whole, or bin widths, external inputs or behaviour channels differ between sessions.
    """
    if not dataset.sessions:
        raise DatasetError(f"{where}: there is no session; name at least one")
    for name, session in dataset.sessions.items():
        if name in ("", ".", "..") or "/" in name or name.split("_")[0] in ("train", "valid", "test"):
            raise DatasetError(f"{where}: {name!r} cannot name a session; use letters and digits, and no split's name")
        check(session, f"{where}: session {name!r}")
    first, reference = next(iter(dataset.sessions.items()))
    for name, session in dataset.sessions.items():
        for what, unit, value, expected in (
            ("bin_s", "bin width (s)", session.bin_s, reference.bin_s),
            ("ext_input", "external input channels", session.n_inputs, reference.n_inputs),
            ("signal", "signal", session.signal, reference.signal),
        ):
            if value != expected:
                raise DatasetError(
                    f"{where}: session {name!r} has {value} as its {unit} but session {first!r} has {expected}; "
                    f"sessions of one model must agree in `{what}`: prepare them alike, or fit them apart"
                )
    with_behavior = {name: session for name, session in dataset.sessions.items() if session.n_behaviors}
    channels = {name: (one.n_behaviors, tuple(one.names.get("behavior", ()))) for name, one in with_behavior.items()}
    if len(set(channels.values())) > 1:
        raise DatasetError(
            f"{where}: sessions differ in their behaviour (number, names): {channels}; give all the same channels"
        )
    return dataset
