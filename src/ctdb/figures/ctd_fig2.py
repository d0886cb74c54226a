"""The path of the data: from the inputs of a task to spikes, and from these to what a fit infers, in one real trial."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import ConnectionPatch

from ctdb.datasets import SpikeDataset
from ctdb.errors import DatasetError, MissingError
from ctdb.figures import FIGURES
from ctdb.figures.base import (
    TRUTH_COLOUR,
    WIDTH,
    Figure,
    FigureSettings,
    fit_outputs,
    fit_title,
    read_session,
    say_missing,
    scores_in,
)
from ctdb.figures.planned import Need, Planned
from ctdb.figures.principal import principal_space
from ctdb.metrics.r2 import linear_map
from ctdb.settings import Count, Seed

SCORES = {
    "inputs": ("input R²", "input_r2_true_to_inferred"),
    "states": ("state R²", "state_r2_true_to_inferred"),
    "rates": ("rate R²", "rate_r2"),
}
"""What is said between a true and an inferred panel, and the score that it is."""
STEPS = ("network\ntrained on\nthe task", "one unit per\nneuron, scaled,\nexponential", "Poisson\ncounts")
"""What leads from each true panel to the next."""
TITLES = {"inputs": "inputs of the task", "states": "states (PCs)", "rates": "rates of neurons", "spikes": "spikes"}
Arrays = Mapping[str, np.ndarray]


class CtdFig2Settings(FigureSettings):
    """Settings of figure `ctd_fig2`: the fit, and the number of the trial among those that scores are reported on."""

    dataset: str
    model: str
    session: str = ""
    seed: Seed = 0
    trial: Seed = 0
    n_neurons: Count = 4


@FIGURES.register("ctd_fig2")
class CtdFig2(Figure):
    """The path of the data, in one trial: above, how the spikes came about; below, what a fit infers from them.

    Above, from left to right: inputs of the task, states of the network that solves it in their first principal
    components, rates of some neurons, and the spikes of all, the only panel that a fit sees, with the inputs where it
    is given these. Below: the inferred rates, states and inputs, in colour over the true ones; states and inputs are
    carried over by a regression on the train trials. The scores between them are those of all trials that scores are
    reported on, of states and inputs by regression from true to inferred.
    """

    Settings = CtdFig2Settings
    partial = True
    fields = ("latents",)

    @staticmethod
    def needs(settings: CtdFig2Settings, planned: Planned) -> list[Need]:
        """Dataset, fit and its scores."""
        fit = (settings.dataset, settings.model, settings.seed)
        return [("dataset", settings.dataset), ("fit", *fit), ("scores", *fit)]

    @staticmethod
    def draw(settings: CtdFig2Settings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw trial number `trial` of the split that scores are reported on."""
        dataset = read_session(files["dataset", settings.dataset], settings.session)
        split = dataset.report_split
        trials = dataset[split]
        if settings.trial >= trials.n_trials:
            raise DatasetError(
                f"figure `ctd_fig2`: trial {settings.trial} of {trials.n_trials} {split} trials, counted from 0"
            )
        valid = trials.valid_bins[settings.trial]
        time = dataset.bin_s * np.arange(valid.sum())
        true = {key: value[settings.trial][valid] for key, value in trials.arrays().items() if value.ndim == 3}
        canvas, axes = plt.subplots(2, 4, figsize=(WIDTH, 4.0))
        canvas.subplots_adjust(left=0.1, right=0.985, bottom=0.1, top=0.88, wspace=0.8, hspace=0.75)
        above, below = (dict(zip(TITLES, row, strict=True)) for row in axes)
        shown = _true_curves(dataset, settings, true)
        tables = [_tabulate("true", time, shown)]
        for name, ax in above.items():
            ax.set_title(TITLES[name])
            if name == "spikes":
                tables.append(_draw_spikes(ax, time, true["recon_data"], dataset.n_heldin))
            else:
                _draw_stack(ax, time, shown.get(name, {}), {}, "")
        try:
            inferred, given = _inferred_curves(dataset, settings, files)
            tables.append(_tabulate("inferred", time, inferred))
            scores = _scores(settings, files, split)
            tables.append(
                pd.DataFrame([{"source": "score", "panel": name, "value": value} for name, value in scores.items()])
            )
            title = fit_title(files["fit", settings.dataset, settings.model, settings.seed], settings.model)
            for name in SCORES:
                note = given if name == "inputs" else "none inferred"
                _draw_stack(below[name], time, shown.get(name, {}), inferred.get(name, {}), note)
                below[name].set_title(f"inferred {name}")
            _draw_arrows(above, below, scores, inferred, title)
        except MissingError as error:
            for ax in below.values():
                say_missing(ax, error)
            _draw_path(above)
        canvas.suptitle(f"{settings.dataset}: {split} trial {settings.trial}", x=0.02, ha="left")
        return canvas, pd.concat(tables, ignore_index=True)

    @staticmethod
    def findings(settings: CtdFig2Settings, table: pd.DataFrame) -> str:
        """Scores of the fit."""
        scores = table[table["source"] == "score"]
        if scores.empty:
            return ""
        numbers = ", ".join(f"{SCORES[row.panel][0]} {row.value:.2f}" for row in scores.itertuples())
        return f"The fit of {settings.model} with seed {settings.seed}: {numbers}."


def _true_curves(dataset: SpikeDataset, settings: CtdFig2Settings, true: Arrays) -> dict[str, dict[str, np.ndarray]]:
    """Panel to its curves by name: inputs that the trial uses, components of states, rates of some neurons."""
    space = principal_space(dataset, settings.dataset, "ctd_fig2")
    shown = {"states": dict(zip(_components(len(space.share)), space(true["latents"]).T, strict=True))}
    if "inputs_true" in true:
        names = dataset.names.get("inputs_true") or [f"input {k}" for k in range(true["inputs_true"].shape[1])]
        used = np.flatnonzero(np.abs(true["inputs_true"]).max(0) > 0)
        shown["inputs"] = {names[channel]: true["inputs_true"][:, channel] for channel in used}
    if "truth" in true:
        shown["rates"] = {f"neuron {k}": true["truth"][:, k] for k in _busiest(dataset, settings.n_neurons)}
    return shown


def _components(n: int) -> list[str]:
    return [f"PC {axis + 1}" for axis in range(n)]


def _busiest(dataset: SpikeDataset, n: int) -> list[int]:
    """Held-in neurons whose true rates, or spikes where these are not known, vary most in the train trials."""
    train = dataset["train"]
    seen = np.where(train.observed(), train.recon_data if train.truth is None else train.truth, np.nan)
    return np.argsort(-np.nanvar(seen, axis=(0, 1))[: dataset.n_heldin], kind="stable")[:n].tolist()


def _inferred_curves(
    dataset: SpikeDataset, settings: CtdFig2Settings, files: Mapping[Need, str]
) -> tuple[dict[str, dict[str, np.ndarray]], str]:
    """The same of the fit, in the units of the true ones; and what is said where it infers no inputs."""
    path, split = files["fit", settings.dataset, settings.model, settings.seed], dataset.report_split
    outputs = {name: fit_outputs(path, name, settings.session) for name in dict.fromkeys(("train", split))}
    trials, train = dataset[split], dataset["train"]
    valid = trials.valid_bins[settings.trial]

    def carried(own: str, target: np.ndarray) -> np.ndarray:
        weights, offset = linear_map(outputs["train"][own][train.valid_bins].astype(np.float64), target)
        return outputs[split][own][settings.trial][valid] @ weights + offset

    space = principal_space(dataset, settings.dataset, "ctd_fig2")
    shown = {}
    if "rates" in outputs[split]:
        rates = outputs[split]["rates"][settings.trial][valid]
        shown["rates"] = {f"neuron {k}": rates[:, k] for k in _busiest(dataset, settings.n_neurons)}
    if "latents" in outputs[split]:
        states = carried("latents", space(train.latents[train.valid_bins].astype(np.float64)))
        shown["states"] = dict(zip(_components(len(space.share)), states.T, strict=True))
    if "co_means" in outputs[split] and trials.inputs_true is not None:
        values = carried("co_means", train.inputs_true[train.valid_bins].astype(np.float64))
        names = dataset.names.get("inputs_true") or [f"input {k}" for k in range(values.shape[1])]
        shown["inputs"] = dict(zip(names, values.T, strict=True))
    return shown, "none inferred:\nexternal input" if trials.ext_input is not None else "none inferred"


def _scores(settings: CtdFig2Settings, files: Mapping[Need, str], split: str) -> dict[str, float]:
    """Scores of the fit by panel, those that there are."""
    try:
        table = scores_in(files, settings.dataset)
    except MissingError:
        return {}
    table = table[
        (table["role"] == "fit") & (table["split"] == split) & (table["session"].fillna("") == settings.session)
    ]
    known = table.dropna(subset="value").set_index("metric")["value"]
    return {name: float(known[metric]) for name, (_, metric) in SCORES.items() if metric in known}


def _tabulate(source: str, time: np.ndarray, shown: Mapping[str, Mapping[str, np.ndarray]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"source": source, "panel": panel, "curve": curve, "time_s": time, "value": values})
        for panel, curves in shown.items()
        for curve, values in curves.items()
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _draw_stack(
    ax: Axes, time: np.ndarray, true: Mapping[str, np.ndarray], inferred: Mapping[str, np.ndarray], note: str
) -> None:
    """Curves above one another on one scale, that of the true ones; without any, `note`."""
    if not (inferred if note else true):
        ax.text(
            0.5, 0.5, note or "not known", ha="center", va="center", transform=ax.transAxes, color="0.4", fontsize=6
        )
        ax.set_xticks([])
        ax.set_yticks([])
        return
    names = list(true or inferred)
    extent = max(float(np.ptp(values)) for values in (true or inferred).values()) or 1.0
    for place, name in enumerate(names):
        scaled = (true or inferred)[name]
        shift = -1.15 * place * extent - (scaled.min() + scaled.max()) / 2
        if name in true:
            ax.plot(time, true[name] + shift, color="0.65" if note else TRUTH_COLOUR, lw=0.8)
        if name in inferred:
            ax.plot(time, inferred[name] + shift, color=f"C{place % 7}", lw=0.8)
    ax.set_yticks(-1.15 * extent * np.arange(len(names)), [name.removeprefix("neuron ") for name in names])
    ax.tick_params(axis="y", length=0, labelsize=5.5)
    ax.set_xlabel("time (s)", labelpad=1)


def _draw_spikes(ax: Axes, time: np.ndarray, counts: np.ndarray, n_heldin: int) -> pd.DataFrame:
    """All neurons, the held-out ones below a line; gives the counts."""
    step = time[1] - time[0] if len(time) > 1 else 1.0
    image = np.nan_to_num(counts.T)
    ax.imshow(image, cmap="Greys", aspect="auto", extent=(0, time[-1] + step, image.shape[0], 0), vmin=0)
    if n_heldin < image.shape[0]:
        ax.axhline(n_heldin, color="C1", lw=0.8)
    ax.set_yticks([n_heldin / 2, (n_heldin + image.shape[0]) / 2], ["held-in", "held-out"])
    ax.tick_params(axis="y", length=0, labelsize=5.5)
    ax.set_xlabel("time (s)", labelpad=1)
    neurons, bins = image.shape
    return pd.DataFrame(
        {
            "source": "true",
            "panel": "spikes",
            "curve": [f"neuron {k}" for k in np.repeat(np.arange(neurons), bins)],
            "time_s": np.tile(time, neurons),
            "value": counts.T.ravel(),
        }
    )


def _arrow(start: Axes, end: Axes, ends: tuple[tuple[float, float], tuple[float, float]], style: str = "-|>") -> None:
    arrow = {"arrowstyle": style, "mutation_scale": 8, "lw": 1.0, "color": "0.3"}
    start.figure.add_artist(ConnectionPatch(*ends, start.transAxes, end.transAxes, **arrow))


def _draw_path(above: Mapping[str, Axes]) -> None:
    """From each true panel to the next."""
    panels = list(above.values())
    for ax, after, step in zip(panels, panels[1:], STEPS, strict=False):
        _arrow(ax, after, ((1.06, 0.5), (-0.42, 0.5)))
        ax.text(1.3, 0.56, step, transform=ax.transAxes, ha="center", va="bottom", fontsize=5.5)


def _draw_arrows(
    above: Mapping[str, Axes],
    below: Mapping[str, Axes],
    scores: Mapping[str, float],
    inferred: Mapping[str, Mapping[str, np.ndarray]],
    title: str,
) -> None:
    """From panel to panel, from the spikes to the fit and back to what it infers, with the scores between them."""
    _draw_path(above)
    for name, (label, _) in SCORES.items():
        if name in inferred:
            _arrow(above[name], below[name], ((0.5, -0.27), (0.5, 1.17)), "<|-|>")
            said = f"{label} {scores[name]:.2f}" if name in scores else f"{label}: no score"
            above[name].text(0.54, -0.42, said, transform=above[name].transAxes, va="center", fontsize=6)
    fit = below["spikes"]
    fit.set_axis_off()
    box = {"boxstyle": "round,pad=0.6", "fc": "0.95", "ec": "0.3", "lw": 0.8}
    fit.text(0.5, 0.5, f"fit\n{title}", transform=fit.transAxes, ha="center", va="center", bbox=box)
    _arrow(above["spikes"], fit, ((0.5, -0.27), (0.5, 0.78)))
    for name, after in (("rates", "spikes"), ("states", "rates"), ("inputs", "states")):
        if name in inferred:
            _arrow(below[after], below[name], ((0.05 if after == "spikes" else -0.42, 0.5), (1.06, 0.5)))
