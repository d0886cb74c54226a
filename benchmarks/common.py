"""What the benchmarks share: timing in turn, the machine in words, and their place in README.md."""

import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

README = Path(__file__).parent / "README.md"


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int, least: float = 0.0) -> dict[str, list[float]]:
    """Seconds of one call of each side in each round, all sides in every round, after a round to warm up.

    A side that takes less than `least` seconds is called several times in a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    calls = {}
    for name, side in sides.items():
        side()
        start = time.perf_counter()
        side()
        calls[name] = max(1, round(least / max(time.perf_counter() - start, 1e-9)))
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                side()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return seconds


def faster_than_a_loop(seconds: Mapping[str, list[float]], loop: str, what: str, equal: str) -> str:
    """Table, as Markdown, of the sides `loop` and `ctdb`, and the median of the rounds' own ratios.

    `loop` says what the loop runs over, `what` was timed, and `equal` what the two were found to agree in.
    """
    ratios = [theirs / ours for theirs, ours in zip(seconds["loop"], seconds["ctdb"], strict=True)]
    rows = [
        f"| {label} | {1000 * statistics.median(seconds[name]):.0f} | {1000 * min(seconds[name]):.0f} |"
        for name, label in (("loop", f"Python loop over {loop}"), ("ctdb", "ctdb, `generate()`"))
    ]
    return "\n".join(
        [
            f"{what}; 1 thread, {len(ratios)} rounds in turn.",
            "",
            "| side | median ms | best ms |",
            "|---|---|---|",
            *rows,
            "",
            f"**{statistics.median(ratios):.1f} times faster** (median of the rounds' own ratios; lowest "
            f"{min(ratios):.1f}, highest {max(ratios):.1f}). {equal}",
        ]
    )


def machine(*packages: str) -> str:
    """The machine in general words, with the versions of some packages."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        model = found[1].strip()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    today = datetime.date.today().isoformat()
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, {today}"


def write_section(title: str, body: str) -> None:
    """Replace the section under `title` in README.md, up to the next one of its level, or add it at the end."""
    text, section = README.read_text(), f"{title}\n\n{body}\n"
    pattern = re.compile(rf"^{re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        text = pattern.sub(lambda _: f"{section}\n", text).rstrip("\n") + "\n"
    else:
        text = f"{text.rstrip()}\n\n{section}"
    README.write_text(text)
