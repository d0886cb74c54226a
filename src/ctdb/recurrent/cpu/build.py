"""Compile `kernels.cpp` for this machine, once, and load it.

The file name of the library is a hash of everything that decides its content: the source, the compiler and its version,
the flags, and what the processor can do. So another source or another processor never meets an old build, also where
machines of different kinds share a home folder. It is compiled under a name of its own and then renamed, so any number
of jobs may build at once and none sees half a file.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-w",
)
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300
"""Longest time that a compiler may take."""


class BuildError(Exception):
    """The kernels cannot be compiled or loaded here; the text says why."""


@functools.cache
def library() -> ctypes.CDLL:
    """Load the library, compiled first where that has not been done; BuildError where it cannot be."""
    compiler = _compiler()
    path = _folder() / f"ctdb_kernels_{_identity(compiler)}.so"
    if not path.exists():
        _compile(compiler, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path} cannot be loaded ({error}); remove it and try again") from None


def _compiler() -> str:
    """Path of the compiler: ``CXX`` in the environment, or the first found."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else COMPILERS:
        if found := shutil.which(name):
            return found
    raise BuildError(f"no C++ compiler found ({wanted or ', '.join(COMPILERS)})")


def _folder() -> Path:
    """Where builds are kept: ``CTDB_CACHE``, or the user's cache; a temporary folder where neither can be written."""
    own = f"ctdb-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    chosen = os.environ.get("CTDB_CACHE") or _user_cache()
    for folder in (Path(chosen).absolute(), Path(tempfile.gettempdir(), own)):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and _mine(folder):
            return folder
    raise BuildError(f"no folder to keep the compiled kernels in: {chosen} cannot be written; set CTDB_CACHE")


def _user_cache() -> Path:
    """The user's cache; the temporary folder for a user without a home."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"], "ctdb")
    try:
        return Path.home() / ".cache" / "ctdb"
    except RuntimeError:
        return Path(tempfile.gettempdir(), "ctdb")


def _mine(folder: Path) -> bool:
    """Whether nobody else can put a library there."""
    status = folder.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _identity(compiler: str) -> str:
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} does not run ({error})") from None
    try:
        digest = hashlib.sha256(SOURCE.read_bytes())
    except OSError as error:
        raise BuildError(f"{SOURCE} cannot be read ({error}); install ctdb again") from None
    for part in (compiler, version, *FLAGS, platform.system(), platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:20]


def _processor() -> str:
    """What decides ``-march=native``: model and features."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    lines = [
        line
        for line in text.splitlines()
        if re.match(r"(model name|model|cpu family|flags|Features|CPU part)\s*:", line)
    ]
    return "\n".join(dict.fromkeys(lines))


def _compile(compiler: str, path: Path) -> None:
    draft = ""
    try:
        handle, draft = tempfile.mkstemp(".so", "building_", path.parent)
        os.close(handle)
        made = subprocess.run(
            [compiler, *FLAGS, str(SOURCE), "-o", draft], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if made.returncode:
            raise BuildError(f"{compiler} cannot compile {SOURCE.name}: {made.stderr.strip()[-500:]}")
        os.chmod(draft, 0o700)
        os.replace(draft, path)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} cannot compile {SOURCE.name}: {error}") from None
    finally:
        if draft:
            Path(draft).unlink(missing_ok=True)
