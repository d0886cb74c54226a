"""The errors a user can cause and cure. Each message says where, what was expected, what was found, what to do."""

import difflib
from collections.abc import Iterable


class CtdbError(Exception):
    """Base of every error that is the input's fault: shown to the user without a traceback."""


class ConfigError(CtdbError):
    """A key of the configuration is unknown, of the wrong type, or refers to nothing."""


class DatasetError(CtdbError):
    """A spike file lacks a key or holds values that cannot be spike counts."""


class IblError(DatasetError):
    """A recording of the International Brain Laboratory cannot be used as asked."""


class IblAccessError(IblError):
    """The database of recordings cannot be reached, or does not let this user in."""


class IblMissingError(IblError):
    """A session, probe, revision or file of a recording is not there."""


class IblChecksumError(IblError):
    """A file of a recording has not the size or the md5 that its record tells."""


class IblNoUnitsError(IblError):
    """Too few units of a recording are left when all filters have acted."""


class IblNoTrialsError(IblError):
    """Too few trials or windows of a recording are left when all filters have acted."""


class IblPrepareError(IblError):
    """Files of a recording do not go together, lack a column, or do not suit the settings."""


class TaskError(CtdbError):
    """Trials of a task cannot be drawn or run as the settings ask."""


class MetricError(CtdbError):
    """A metric was asked for that these arrays cannot answer."""


class DynamicsError(CtdbError):
    """A dynamical system cannot be analysed as asked: its step, states or inputs do not go together."""


class WriteError(CtdbError):
    """An output could not be written; whatever stood at its path before is untouched."""


class TrainingDivergedError(CtdbError):
    """The loss became NaN or infinite. The best weights seen before that are kept."""


class StoppedError(CtdbError):
    """The job was told to stop before it was done."""


class MissingError(CtdbError):
    """A figure lacks what this configuration does not make; it is drawn with the reason in its place."""


class ClusterError(CtdbError):
    """The cluster would refuse what it is to be asked for."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Hint for a misspelt name: the closest valid one, or all of them when none is close.

    Parameters
    ----------
    name
        What was written.
    valid
        What could have been written.

    Returns
    -------
    A sentence without a leading blank, such as ``did you mean 'nbff'?``.
    """
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "there is none to choose from" if not valid else f"valid: {', '.join(valid)}"
