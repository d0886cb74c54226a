"""What every rule's script does around its work: send output to the job's log and show errors as a user reads them."""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from ctdb import interruption
from ctdb.errors import CtdbError
from ctdb.files import LOOK_S, beside_run, claim, leave_if_orphaned


@contextlib.contextmanager
def job(log: str, threads: int) -> Iterator[None]:
    """Run the body of a rule's script with standard output and error in `log` and at most `threads` threads.

    An error that the user can cure (CtdbError) ends the script with its message alone; any other one keeps its
    traceback. Where the log cannot be written, the message goes to the terminal. Use it before torch is imported, so
    that the thread count takes effect everywhere. A job whose run was killed ends itself, so that it cannot overwrite
    what a later run makes; on a cluster, where jobs outlive their run, one does whose outputs a later attempt makes.
    SIGTERM ends it where it can go on from.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    _hide_gpus_not_granted()
    terminal = os.dup(2)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", buffering=1) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        interruption.listen()
        try:
            if "CTDB_RUN" in os.environ and not beside_run():
                claim(f"{log}.job")
            threading.Thread(target=_watch_run, daemon=True).start()
            print("versions:", ", ".join(f"{name} {version(name)}" for name in ("ctdb", "numpy", "torch")))
            yield
            sys.stdout.flush()
        except BaseException as error:
            curable = isinstance(error, CtdbError)
            text = f"error: {error}\n" if curable else traceback.format_exc()
            try:
                sys.stdout.flush()
                file.write(text)
                file.flush()
            except OSError:  # the disk that holds the log is full
                os.write(terminal, text.encode())
            os._exit(1)  # closing the log in the usual way would fail on a full disk, and hide the message


def _hide_gpus_not_granted() -> None:
    """On a node of a cluster, see no GPU that Slurm has not given to this job; not every cluster sees to it itself."""
    granted = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
    on_cluster = "CTDB_RUN" in os.environ and not beside_run()
    if on_cluster and not any(os.environ.get(name) for name in granted):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _watch_run() -> None:
    while True:
        leave_if_orphaned()
        time.sleep(0.5 if beside_run() else LOOK_S)
