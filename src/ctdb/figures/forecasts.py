"""How long free runs stay right, and how fast neighbouring states part: forecasts and Lyapunov spectra."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from ctdb.dsa_scores import TRUTH
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, fit_title, read_session
from ctdb.figures.planned import Need, Planned
from ctdb.files import read_hdf5
from ctdb.settings import NonEmpty, Seed

PERSISTENCE = "no change"
MEAN_STATE = {"color": "0.5", "lw": 0.6, "ls": ":"}
WORST = 10.0
"""Errors above this, of the mean state's, are off the panel: such a run has left all true states."""


class ForecastsSettings(FigureSettings):
    """Settings of figure `forecasts`."""

    dataset: str
    models: NonEmpty[str]
    seed: Seed = 0


@FIGURES.register("forecasts")
class Forecasts(Figure):
    """Left, squared error of free runs from true states, against the horizon; right, Lyapunov exponents.

    An error of 1 is that of always forecasting the mean state. Where the true system is known, its own free runs are
    what noise leaves to forecast.
    """

    Settings = ForecastsSettings
    fields = ("latents",)

    @staticmethod
    def needs(settings: ForecastsSettings, planned: Planned) -> list[Need]:
        """Dataset, fits, and the dynamics of all of them."""
        fits = [(settings.dataset, model, settings.seed) for model in settings.models]
        return [
            ("dataset", settings.dataset),
            ("dynamics", settings.dataset),
            *(("fit", *fit) for fit in fits),
            *(("dynamics", *fit) for fit in fits),
        ]

    @staticmethod
    def draw(settings: ForecastsSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw the true system and all models."""
        bin_s = read_session(files["dataset", settings.dataset]).bin_s
        facts = {TRUTH: read_hdf5(files["dynamics", settings.dataset])[0]}
        titles = {TRUTH: TRUTH}
        for model in settings.models:
            fit = (settings.dataset, model, settings.seed)
            facts[model] = read_hdf5(files["dynamics", *fit])[0]
            titles[model] = fit_title(files["fit", *fit], model)
        tables = [*_errors(facts, bin_s), *_exponents(facts)]
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["panel", "source"])
        return _draw(settings.dataset, titles, table), table


def _errors(facts: Mapping[str, Mapping[str, np.ndarray]], bin_s: float) -> list[pd.DataFrame]:
    """Error against horizon of all that was run, and of forecasting no change, which is one for all."""
    curves = {name: own["forecast_error"] for name, own in facts.items() if "forecast_error" in own}
    still = [own["forecast_persistence"] for own in facts.values() if "forecast_persistence" in own]
    if still:
        curves[PERSISTENCE] = still[0]
    return [
        pd.DataFrame(
            {"panel": "forecast", "source": name, "horizon_s": bin_s * (1 + np.arange(len(error))), "error": error}
        )
        for name, error in curves.items()
    ]


def _exponents(facts: Mapping[str, Mapping[str, np.ndarray]]) -> list[pd.DataFrame]:
    return [
        pd.DataFrame(
            {
                "panel": "lyapunov",
                "source": name,
                "number": 1 + np.arange(len(own["lyapunov"])),
                "per_second": own["lyapunov"],
                "standard_error": own["lyapunov_error"],
            }
        )
        for name, own in facts.items()
        if "lyapunov" in own
    ]


def _draw(name: str, titles: Mapping[str, str], table: pd.DataFrame) -> Canvas:
    canvas = plt.figure(figsize=(WIDTH, 2.9), layout="constrained")
    left, right = canvas.subplots(1, 2, gridspec_kw={"width_ratios": [1.1, 1]})
    styles = {PERSISTENCE: {"color": "0.5", "ls": "--"}, TRUTH: {"color": TRUTH_COLOUR, "lw": 1.4}}
    models = [model for model in titles if model != TRUTH]
    for number, model in enumerate(models):
        styles[model] = {"color": f"C{number % 7}", "ls": "-:"[number // 7 % 2]}
    for panel, ax, draw in (("forecast", left, _draw_errors), ("lyapunov", right, _draw_exponents)):
        rows = table[table["panel"] == panel]
        if len(rows):
            draw(ax, rows, styles)
        else:
            ax.text(0.5, 0.5, f"no {panel}", transform=ax.transAxes, ha="center", color="0.35")
            ax.set_axis_off()
    drawn = set(table["source"])
    lines = []
    for source in [TRUTH, *models, *([PERSISTENCE] if PERSISTENCE in drawn else [])]:
        label = titles.get(source, source)
        told = source in drawn or label != source  # a title that says more than the name says why there is nothing
        lines.append(left.plot([], [], label=label if told else f"{label} (none)", **styles[source])[0])
    lines.append(left.plot([], [], label="mean state; no growth", **MEAN_STATE)[0])
    canvas.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 5))
    canvas.suptitle(f"{name}: forecasts and Lyapunov exponents", x=0.02, ha="left")
    return canvas


def _draw_errors(ax: Axes, rows: pd.DataFrame, styles: Mapping[str, Mapping[str, object]]) -> None:
    for source, curve in rows.groupby("source", sort=False):
        ax.plot(curve["horizon_s"], curve["error"], **styles[source])
    ax.axhline(1, **MEAN_STATE)
    ax.set_yscale("log")
    ax.set_ylim(top=min(1.3 * max(1.2, rows["error"].max()), WORST))
    ax.set_xlim(left=0)
    ax.set_xlabel("horizon (s)")
    ax.set_ylabel("forecast error (of variance)")


def _draw_exponents(ax: Axes, rows: pd.DataFrame, styles: Mapping[str, Mapping[str, object]]) -> None:
    for source, own in rows.groupby("source", sort=False):
        style = styles[source] | {"marker": "o", "ms": 2.5}
        ax.errorbar(own["number"], own["per_second"], yerr=own["standard_error"], elinewidth=0.6, **style)
    ax.axhline(0, **MEAN_STATE)
    ax.set_yscale("symlog", linthresh=1.0)
    ax.margins(y=0.1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("number of exponent")
    ax.set_ylabel("Lyapunov exponent (1/s)")
