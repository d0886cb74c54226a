"""What every rule's script does around its work: send output to the job's log and show errors as a user reads them."""

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from ctdb.errors import CtdbError


@contextlib.contextmanager
def job(log: str, threads: int) -> Iterator[None]:
    """Run the body of a rule's script with standard output and error in `log` and at most `threads` threads.

    An error that the user can cure (CtdbError) ends the script with its message alone; any other one keeps its
    traceback. Use it before torch is imported, so that the thread count takes effect everywhere.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", buffering=1) as file:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        except CtdbError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
