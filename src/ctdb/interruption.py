"""A job that is told to stop (SIGTERM: a time limit near, preemption, scancel) ends where it can go on from.

Training defers the signal to the end of its epoch, writes a checkpoint and ends with an error, so that Snakemake tries
again; everything else ends at once, for it has nothing to lose: outputs appear whole or not at all.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from ctdb.errors import StoppedError

_listening = _deferring = _asked = False


def listen() -> None:
    """Answer SIGTERM in this process; to be called in its main thread."""
    global _listening
    _listening = True
    signal.signal(signal.SIGTERM, _answer)


def listen_again() -> None:
    """Answer SIGTERM here where this process did so until a library took the signal."""
    if _listening:
        listen()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let SIGTERM wait in the body, which looks at :func:`is_asked` now and then."""
    global _deferring
    before, _deferring = _deferring, True
    try:
        yield
    finally:
        _deferring = before


def is_asked() -> bool:
    """Whether SIGTERM came while it was deferred: write a checkpoint, then :func:`stop`."""
    return _asked


def stop() -> NoReturn:
    """Raise StoppedError."""
    raise StoppedError(
        "told to stop (SIGTERM: the time limit is near, or the job was preempted or cancelled); a checkpoint is "
        "written, and the same command goes on from there"
    )


def _answer(_number: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = True
    if not _deferring:
        os.write(2, b"error: told to stop (SIGTERM); nothing is half-written, and the same command makes it again\n")
        os._exit(1)
