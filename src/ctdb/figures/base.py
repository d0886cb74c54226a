"""What a figure is: how it is drawn, and how it goes to disk as PDF and PNG, with its numbers and its caption."""

import inspect
import io
import json
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ctdb import datasets
from ctdb.datasets import SpikeDataset
from ctdb.errors import DatasetError, MissingError
from ctdb.figures.planned import SCORES, Files, Need, Planned
from ctdb.files import read_hdf5, write_bytes, write_text
from ctdb.scores import gather
from ctdb.settings import Settings

STYLE = Path(__file__).with_name("ctdb.mplstyle")
TRUTH_COLOUR = "black"
WIDTH = 7.1
"""Width of a full page in inches (180 mm)."""


class FigureSettings(Settings):
    """Settings that every figure has."""

    kind: str


class Figure(ABC):
    """A figure; subclasses set `Settings`, name what they need and draw it. Their docstring is their caption."""

    Settings: ClassVar[type[FigureSettings]]
    fields: ClassVar[tuple[str, ...]] = ()
    """Fields that a dataset need not have but this figure does."""
    partial: ClassVar[bool] = False
    """Whether the figure is drawn from what there is, and says what is missing, where a fit is not in the plan."""
    interactive: ClassVar[Callable[[FigureSettings, Mapping[Need, str]], Any] | None] = None
    """A kind may have a static method of this name, of the arguments of `draw`: the same as a figure of plotly, which
    the report shows."""
    reproduction: ClassVar[Callable[[FigureSettings, Mapping[Need, str]], pd.DataFrame] | None] = None
    """A kind with published numbers has a static method of this name, of the arguments of `draw`: ours beside them, as
    :func:`ctdb.figures.published.comparison` returns them."""

    @staticmethod
    @abstractmethod
    def needs(settings: FigureSettings, planned: Planned) -> list[Need]:
        """Files that the figure is drawn from, by what they are."""

    @staticmethod
    @abstractmethod
    def draw(settings: FigureSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the figure from its files; also return the numbers in it as a tidy table."""

    @staticmethod
    def findings(settings: FigureSettings, table: pd.DataFrame) -> str:
        """What the numbers of the figure say, in sentences made from its table; the end of its caption."""
        return ""


def make(figure: type[Figure], settings: FigureSettings, files: Files, out: Path | str) -> None:
    """Draw a figure and write ``{out}.pdf``, ``.png``, ``.csv`` and the caption, ``.txt``; equal inputs, equal bytes.

    A figure that lacks a file which it cannot be drawn without is one that says so.
    """
    mpl.use("agg")
    with mpl.style.context(STYLE):
        try:
            canvas, table = figure.draw(settings, files)
            said = figure.findings(settings, table)
        except MissingError as error:
            canvas, ax = plt.subplots(figsize=(WIDTH / 2, 1.2))
            say_missing(ax, error)
            table, said = pd.DataFrame({"missing": [str(error)]}), ""
        plt.close(canvas)  # pyplot would keep it; its contents can still be written
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, metadata=metadata)
            write_bytes(f"{out}.{suffix}", buffer.getvalue())
    write_text(f"{out}.csv", table.to_csv(index=False, float_format="%.6g"))
    lacks = [f"Missing: {reason}." for reason in dict.fromkeys(files.missing.values())]
    write_text(f"{out}.txt", "\n\n".join([*_paragraphs(figure), *filter(None, [said]), *lacks]) + "\n")


def _paragraphs(figure: type[Figure]) -> list[str]:
    """Docstring of a figure as plain paragraphs."""
    parts = inspect.cleandoc(figure.__doc__).replace("`", "").split("\n\n")
    return [" ".join(part.split()) for part in parts]


def say_missing(ax: Axes, error: MissingError) -> None:
    """Write into an empty panel what is missing."""
    ax.set_axis_off()
    write = ax.text2D if hasattr(ax, "text2D") else ax.text
    width = max(20, int(ax.bbox.width / ax.figure.dpi * 18))
    words = textwrap.fill(f"missing: {error}", width, break_long_words=False)
    write(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color="0.35", fontsize=6)


def scores_in(files: Mapping[Need, str], dataset: str) -> pd.DataFrame:
    """Scores of a data set's fits and of its floor and ceiling, from the tables among `files` that are made.

    Raises
    ------
    MissingError
        If there are none of any fit.
    """
    wanted = [need for need in files if need[0] in SCORES and need[1] == dataset]
    missing = getattr(files, "missing", {})
    found = [need for need in wanted if need not in missing]
    if not found:
        raise MissingError(next((missing[need] for need in wanted), f"a fit to {dataset!r}; add one to `fits`"))
    table = gather(dict.fromkeys(files[need] for need in found))
    return table[table["dataset"] == dataset]


def make_interactive(figure: type[Figure], settings: FigureSettings, files: Files, out: Path | str) -> None:
    """Write what plotly draws to ``{out}.json``; equal inputs give equal bytes.

    Where nothing can be drawn, ``layout.meta.missing`` says why.
    """
    try:
        drawn = figure.interactive(settings, files).to_json(engine="json")
    except MissingError as error:
        drawn = json.dumps({"data": [], "layout": {"meta": {"missing": str(error)}}})
    write_text(f"{out}.json", drawn)


def read_session(path: str, session: str = "") -> SpikeDataset:
    """Dataset, or one session of several; raises DatasetError where `session` names none."""
    sessions = datasets.read(path).sessions
    if session not in sessions:
        raise DatasetError(f"{path}: a figure draws one session; set `session` to one of {list(sessions)}")
    return sessions[session]


def fit_outputs(path: str, split: str, session: str = "") -> dict[str, np.ndarray]:
    """Arrays that a fit inferred for one split (of one session), by name."""
    arrays, _ = read_hdf5(path)
    prefix = f"{session}/{split}_".lstrip("/")
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def fit_title(path: str, model: str) -> str:
    """Name of a model in a figure, which says so where the fit did not end well."""
    _, facts = read_hdf5(path)
    return model if facts["status"] == "ok" else f"{model} ({facts['status']})"
