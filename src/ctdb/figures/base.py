"""What a figure is: what it needs, how it is drawn, and how it goes to disk as PDF, PNG and the CSV behind it."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb import datasets
from ctdb.datasets import SpikeDataset
from ctdb.errors import DatasetError
from ctdb.files import read_hdf5, write_bytes, write_text
from ctdb.settings import Settings

STYLE = Path(__file__).with_name("ctdb.mplstyle")
TRUTH_COLOUR = "black"
WIDTH = 7.1
"""Width of a full page in inches (180 mm)."""

Need = tuple[str | int, ...]
"""Such as ("activity", network, seed, variant), ("dataset", name), ("fit", dataset, model, seed) or ("history", ...) of
the same, ("scores",), ("dynamics", dataset), ("dynamics", dataset, model, seed) or ("dsa", dataset). The file of
dynamics is `dynamics.h5`; `fixed_points.h5` lies beside it."""


class FigureSettings(Settings):
    """Settings that every figure has."""

    kind: str


class Figure(ABC):
    """A figure; subclasses set `Settings`, name what they need and draw it."""

    Settings: ClassVar[type[FigureSettings]]
    fields: ClassVar[tuple[str, ...]] = ()
    """Fields that a dataset need not have but this figure does."""
    interactive: ClassVar[Callable[[FigureSettings, Mapping[Need, str]], Any] | None] = None
    """A kind may have a static method of this name, of the arguments of `draw`: the same as a figure of plotly, which
    the report shows."""

    @staticmethod
    @abstractmethod
    def needs(settings: FigureSettings) -> list[Need]:
        """Files that the figure is drawn from, by what they are."""

    @staticmethod
    @abstractmethod
    def draw(settings: FigureSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the figure from its files; also return the numbers in it as a tidy table."""


def make(figure: type[Figure], settings: FigureSettings, files: Mapping[Need, str], out: Path | str) -> None:
    """Draw a figure and write ``{out}.pdf``, ``{out}.png`` and ``{out}.csv``; equal inputs give equal bytes."""
    mpl.use("agg")
    with mpl.style.context(STYLE):
        canvas, table = figure.draw(settings, files)
        plt.close(canvas)  # pyplot would keep it; its contents can still be written
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {})):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, metadata=metadata)
            write_bytes(f"{out}.{suffix}", buffer.getvalue())
    write_text(f"{out}.csv", table.to_csv(index=False, float_format="%.6g"))


def make_interactive(
    figure: type[Figure], settings: FigureSettings, files: Mapping[Need, str], out: Path | str
) -> None:
    """Write what plotly draws to ``{out}.json``; equal inputs give equal bytes."""
    write_text(f"{out}.json", figure.interactive(settings, files).to_json(engine="json"))


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
