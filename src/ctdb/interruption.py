"""A job that is told to stop (SIGTERM: a time limit near, preemption, scancel) ends where it can go on from.

Training defers the signal to the end of its epoch, writes a checkpoint and ends with an error, so that Snakemake tries
again; everything else ends at once, for it has nothing to lose: outputs appear whole or not at all.
"""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from ctdb.errors import StoppedError
from ctdb.files import beside_run

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
    _ask_to_run_again()
    raise StoppedError(
        "told to stop (SIGTERM: the time limit is near, or the job was preempted or cancelled); a checkpoint is "
        "written, and the same command goes on from there"
    )


def _answer(_number: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = True
    if not _deferring:
        os.write(2, b"error: told to stop (SIGTERM); nothing is half-written, and the same command makes it again\n")
        _ask_to_run_again()
        os._exit(1)


def _ask_to_run_again() -> None:
    """Requeue this job of a cluster if it was preempted: Slurm itself does so only if it must kill it.

    One that ends in its grace time would be a failed attempt.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or beside_run():
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        state = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, timeout=20)
        if re.search(r"PreemptTime=\d", state.stdout):
            subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=20)


def passed_on(answer: Callable[..., None]) -> Callable[..., None]:
    """Snakemake's answer to SIGTERM, preceded by handing the signal on to the job that it runs.

    With control groups, Slurm tells only the process that it started itself. On a node of a cluster that is a
    Snakemake, which waits for its job to end and does not tell it.
    """

    def pass_on(*arguments: Any) -> None:
        import psutil

        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name() not in ("bash", "sh"):  # which would end before what they run
                    process.terminate()
        answer(*arguments)

    return pass_on
