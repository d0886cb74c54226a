"""What the inferred inputs do: rates, inputs and behaviour of one trial, with and without them."""

import contextlib
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ctdb.datasets import SpikeDataset
from ctdb.errors import DatasetError, MetricError
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, fit_outputs, fit_title, read_session
from ctdb.figures.planned import Need, Planned
from ctdb.metrics import Case
from ctdb.metrics.behavior import behavior_r2_sums, known_behavior
from ctdb.metrics.bits_per_spike import heldin_bits_per_spike
from ctdb.metrics.r2 import linear_map
from ctdb.settings import Count, NonEmpty, Seed

Outputs = Mapping[str, np.ndarray]


class ControlsSettings(FigureSettings):
    """Settings of figure `controls`."""

    dataset: str
    models: NonEmpty[str]
    session: str = ""
    seed: Seed = 0
    trial: Seed = 0
    n_neurons: Count = 3


@FIGURES.register("controls")
class Controls(Figure):
    """A column per model; rows for rates, inferred inputs, behaviour, and the scores with and without the inputs.

    Solid lines are what the model infers, dashed ones the same with the inferred inputs set to 0, black ones the
    truth where it is known. True inputs are drawn beside their image in the inferred ones, by linear regression on
    the train trials; without true inputs the inferred ones are drawn as they are.
    """

    Settings = ControlsSettings

    @staticmethod
    def needs(settings: ControlsSettings, planned: Planned) -> list[Need]:
        """Dataset and fits."""
        return [
            ("dataset", settings.dataset),
            *(("fit", settings.dataset, model, settings.seed) for model in settings.models),
        ]

    @staticmethod
    def draw(settings: ControlsSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw trial number `trial` of the split that scores are reported on."""
        dataset = read_session(files["dataset", settings.dataset], settings.session)
        split, trial = dataset.report_split, settings.trial
        trials = dataset[split]
        if trial >= trials.n_trials:
            raise DatasetError(f"figure `controls`: trial {trial} of {trials.n_trials} {split} trials, counted from 0")
        n_bins = trials.recon_data.shape[1] if trials.n_bins is None else int(trials.n_bins[trial])
        time = dataset.bin_s * np.arange(n_bins)
        rows = ["rates", "inputs", *(["behavior"] if dataset.n_behaviors else []), "scores"]
        heights = {"rates": 1.2, "inputs": 1.0, "behavior": 1.0, "scores": 0.8}
        n_columns = len(settings.models)
        canvas = plt.figure(figsize=(WIDTH, 0.5 + 1.35 * sum(heights[row] for row in rows)), layout="constrained")
        axes = canvas.subplots(
            len(rows), n_columns, squeeze=False, gridspec_kw={"height_ratios": [heights[row] for row in rows]}
        )
        n_spikes = np.where(trials.observed(), trials.recon_data, 0).sum((0, 1))[: dataset.n_heldin]
        shown = np.argsort(-n_spikes, kind="stable")[: settings.n_neurons]
        tables = []
        for column, model in enumerate(settings.models):
            path = files["fit", settings.dataset, model, settings.seed]
            outputs = {name: fit_outputs(path, name, settings.session) for name in dict.fromkeys(("train", split))}
            one = {name: value[trial, :n_bins] for name, value in outputs[split].items() if value.ndim == 3}
            colour = f"C{column}"
            axes[0, column].set_title(fit_title(path, model))
            panels = dict(zip(rows, axes[:, column], strict=True))
            truth = None if trials.truth is None else trials.truth[trial, :n_bins]
            curves = {
                "rates": _rates(panels["rates"], time, one, truth, shown, colour),
                "inputs": _inputs(panels["inputs"], time, dataset, split, trial, outputs, n_bins),
            }
            if dataset.n_behaviors:
                curves["behavior"] = _behavior(panels["behavior"], time, dataset, trials.behavior[trial], one, colour)
            for panel, lines in curves.items():
                for curve, values in lines.items():
                    columns = {"model": model, "panel": panel, "curve": curve, "time_s": time[: len(values)]}
                    tables.append(pd.DataFrame(columns | {"value": values}))
            scores = _scores(panels["scores"], dataset, split, outputs[split], colour)
            columns = {"model": model, "panel": "scores", "curve": list(scores), "value": list(scores.values())}
            tables.append(pd.DataFrame(columns))
        labels = {"rates": "rates", "inputs": "inputs", "behavior": "behaviour", "scores": ""}
        for row, name in enumerate(rows):
            axes[row, 0].set_ylabel(labels[name])
            for ax in axes[row, 1:]:
                if name != "inputs":
                    ax.set_yticklabels([])
        for ax in axes[len(rows) - 2]:
            ax.set_xlabel("time (s)")
        canvas.suptitle(
            f"{settings.dataset}: one {split} trial; solid: inferred, dashed: without inferred inputs, black: true",
            x=0.02,
            ha="left",
        )
        return canvas, pd.concat(tables, ignore_index=True)


def _rates(
    ax: Axes, time: np.ndarray, one: Outputs, truth: np.ndarray | None, shown: np.ndarray, colour: str
) -> dict[str, np.ndarray]:
    """Rates of some neurons, one above the other; a tick is the zero of its neuron."""
    drawn: dict[str, np.ndarray] = {}
    step = 1.1 * float(one["rates"][:, shown].max())
    for place, neuron in enumerate(shown):
        for label, values, style in (
            ("true", truth, {"color": TRUTH_COLOUR, "lw": 1.2}),
            ("without inputs", one.get("ablated_rates"), {"color": colour, "ls": "--", "lw": 0.8}),
            ("inferred", one["rates"], {"color": colour, "lw": 1.0}),
        ):
            if values is not None:
                ax.plot(time, values[:, neuron] + place * step, **style)
                drawn[f"neuron {neuron} {label}"] = values[:, neuron]
    ax.set_yticks(step * np.arange(len(shown)), [f"neuron {neuron}" for neuron in shown])
    return drawn


def _inputs(
    ax: Axes,
    time: np.ndarray,
    dataset: SpikeDataset,
    split: str,
    trial: int,
    outputs: Mapping[str, Outputs],
    n_bins: int,
) -> dict[str, np.ndarray]:
    """Inferred inputs: as they are, or mapped to the true ones where these are known."""
    if "co_means" not in outputs[split]:
        ax.text(0.5, 0.5, "no inferred inputs", ha="center", va="center", transform=ax.transAxes, color="0.5")
        return {}
    inferred = outputs[split]["co_means"][trial, :n_bins]
    true = dataset[split].inputs_true
    if true is None:
        ax.plot(time, inferred, lw=0.8)
        return {f"inferred {channel}": values for channel, values in enumerate(inferred.T)}
    train = dataset["train"]
    valid = train.observed().any(2)
    weights, offset = linear_map(outputs["train"]["co_means"][valid].astype(np.float64), train.inputs_true[valid])
    mapped = inferred @ weights + offset
    drawn = {}
    step = 1.1 * np.ptp(true[trial, :n_bins]) or 1.0
    for channel in range(true.shape[2]):
        ax.plot(time, true[trial, :n_bins, channel] + channel * step, color=TRUTH_COLOUR, lw=0.8)
        ax.plot(time, mapped[:, channel] + channel * step, color=f"C{channel}", lw=0.8)
        drawn |= {f"true {channel}": true[trial, :n_bins, channel], f"from inferred {channel}": mapped[:, channel]}
    return drawn


def _behavior(
    ax: Axes, time: np.ndarray, dataset: SpikeDataset, true: np.ndarray, one: Outputs, colour: str
) -> dict[str, np.ndarray]:
    """Behaviour in standard deviations of the train trials, one channel above the other; a tick is its mean."""
    known = known_behavior(Case(dataset, {}, "train"), "train")
    mean, std = np.nanmean(known, (0, 1)), np.nanstd(known, (0, 1))
    names = dataset.names.get("behavior") or [f"behaviour {channel}" for channel in range(len(mean))]
    drawn = {}
    for channel, name in enumerate(names):
        for label, values, style in (
            ("true", true, {"color": TRUTH_COLOUR, "lw": 1.2}),
            ("without inputs", one.get("ablated_behavior"), {"color": colour, "ls": "--", "lw": 0.8}),
            ("decoded", one.get("behavior"), {"color": colour, "lw": 1.0}),
        ):
            if values is not None:
                curve = ((values - mean) / std)[: len(time), channel]
                ax.plot(time[: len(curve)], curve + 4.0 * channel, **style)
                drawn[f"{name} {label}"] = curve
    ax.set_yticks(4.0 * np.arange(len(names)), names)
    return drawn


def _scores(ax: Axes, dataset: SpikeDataset, split: str, outputs: Outputs, colour: str) -> dict[str, float]:
    """Bars of what is scored, filled with the inferred inputs and empty without them."""
    trials, case = dataset[split], Case(dataset, {split: outputs}, split)
    scores = {}
    for label, prefix in (("", ""), (", no inputs", "ablated_")):
        with contextlib.suppress(MetricError):  # no bar where a score is not defined
            scores[f"bits/spike{label}"] = heldin_bits_per_spike(case, f"{prefix}rates").value
        with contextlib.suppress(MetricError):
            decoded = case.inferred(f"{prefix}behavior")[:, : case.known("behavior").shape[1]]
            scores[f"R²{label}"] = behavior_r2_sums(trials.behavior, decoded, trials.n_bins).value
    scores = {name: value for name, value in scores.items() if np.isfinite(value)}
    ordered = sorted(scores, key=lambda name: name.split(",")[0])
    for place, name in enumerate(ordered):
        fill = "none" if "no inputs" in name else colour
        ax.barh(-place, scores[name], color=fill, edgecolor=colour, lw=0.8, height=0.7)
        ax.text(max(scores[name], 0), -place, f" {scores[name]:.3f}", va="center", fontsize=5)
    ax.set_yticks([-place for place in range(len(ordered))], ordered)
    ax.set_xlim(1.1 * min([0.0, *scores.values()]), 1.3 * max([*scores.values(), 0.1]))
    ax.set_xlabel("score")
    return scores
