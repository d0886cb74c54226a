"""What the networks behind three tasks do, and how: a trial of each, its fixed points, and reaches that are pushed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.lines import Line2D

from ctdb.errors import DatasetError, MissingError, nearest
from ctdb.figures import FIGURES
from ctdb.figures.base import TRUTH_COLOUR, WIDTH, Figure, FigureSettings, read_session, say_missing
from ctdb.figures.fixed_points import MARKERS, draw_points, point_style
from ctdb.figures.planned import Need, Planned
from ctdb.figures.portraits import Portrait, Portraits, portraits_of
from ctdb.figures.published import NOTHING, comparison
from ctdb.files import read_hdf5
from ctdb.settings import Count, Seed, Settings

HEIGHT = 7.6
LETTERS = {"nbff": "ABC", "multitask": "DEF", "random_target": "GHI"}
PUSHED = {"no force": ("0.55", "-", ""), "force to −x": ("C0", "--", "<"), "force to +x": ("C1", "-", ">")}
"""Colour and line of a reach, and the marker at the first bin of the force."""
CURVES = {
    "given": {"color": "0.7", "lw": 0.4},
    "meant": {"color": TRUTH_COLOUR, "lw": 0.9},
    "target": {"color": TRUTH_COLOUR, "lw": 1.1, "ls": "--"},
    "answer": {"color": "C0", "lw": 0.9},
}
PLAIN = ("stable", "marginal")
"""Stabilities that are words; the others are numbers of unstable directions."""
Rows = list[pd.DataFrame]
Arrays = Mapping[str, np.ndarray]
Files = Mapping[Need, str]
Channels = dict[str, dict[str, np.ndarray]]
"""Channel to its curves."""


class Shown(Settings):
    """A network on its task: trial number `trial` of a condition (of all if empty), and the dataset of its states."""

    network: str
    seed: Seed = 0
    condition: str = ""
    trial: Seed = 0
    dataset: str = ""


class ShownReaches(Settings):
    """A network that reaches: the trial shown, and the variant of the task whose reaches are drawn (none: the same)."""

    network: str
    seed: Seed = 0
    condition: str = ""
    trial: Seed = 0
    variant: str = ""


class CtdFig3Settings(FigureSettings):
    """Settings of figure `ctd_fig3`; each task may be left out. `n_trials` are drawn around the fixed points."""

    nbff: Shown | None = None
    multitask: Shown | None = None
    random_target: ShownReaches | None = None
    n_trials: Count = 12


@FIGURES.register("ctd_fig3")
class CtdFig3(Figure):
    """Three networks at their tasks: inputs and answers of one trial, and how they do it.

    Left: inputs, as the task means them, over what the network is given with noise; channels that the trial does not
    use are left out. Middle: answers over dashed targets. A dotted line is where the response begins. Right, above:
    fixed points of the network under the constant input that the title names, among grey trajectories, in the
    principal components of the true states. Right, below: paths of the hand, with a cross at the target and a triangle
    where a force begins, which points to where it pushes.
    """

    Settings = CtdFig3Settings
    partial = True

    @staticmethod
    def needs(settings: CtdFig3Settings, planned: Planned) -> list[Need]:
        """Activity of the networks, and the dynamics behind the data sets."""
        needs: list[Need] = []
        for shown in (settings.nbff, settings.multitask):
            if shown is not None:
                needs.append(("activity", shown.network, shown.seed, ""))
                if shown.dataset:
                    needs += [("dataset", shown.dataset), ("dynamics", shown.dataset)]
        if (reaches := settings.random_target) is not None:
            needs += [("activity", reaches.network, reaches.seed, variant) for variant in ("", reaches.variant)]
        return needs

    @staticmethod
    def draw(settings: CtdFig3Settings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw a row per task."""
        canvas = plt.figure(figsize=(WIDTH, HEIGHT))
        grid = canvas.add_gridspec(
            3, 3, left=0.115, right=0.985, bottom=0.085, top=0.95, hspace=0.45, wspace=0.27, width_ratios=(1, 1, 1.1)
        )
        rows: Rows = []
        seen: list[str] = []
        for place, name in enumerate(LETTERS):
            _draw_trial(canvas, grid, place, name, getattr(settings, name), files, rows)
        for place, name in enumerate(("nbff", "multitask")):
            shown = getattr(settings, name)
            seen += _draw_fixed_points(canvas, grid[place, 2], name, shown, settings.n_trials, files, rows)
        _draw_reaches(canvas.add_subplot(grid[2, 2]), settings.random_target, settings.n_trials, files, rows)
        kinds = [label for label in MARKERS if label in seen]
        handles = [Line2D([], [], ls="none", label=label, **point_style(label, 4.0)) for label in kinds]
        canvas.legend(handles=handles, loc="center right", ncols=2, bbox_to_anchor=(0.995, 0.367), columnspacing=1.0)
        return canvas, pd.concat([pd.DataFrame(columns=["task", "panel"]), *rows], ignore_index=True)

    @staticmethod
    def findings(settings: CtdFig3Settings, table: pd.DataFrame) -> str:
        """Success of the networks, and their fixed points by stability."""
        said = []
        for task, own in table.groupby("task", sort=False):
            points = own[own["panel"] == "fixed points"]
            success = own.loc[own["panel"] == "success", "value"]
            parts = [f"success {value:.1%}" for value in success]
            if len(points):
                counts = points["stability"].value_counts(sort=False)
                own_words = [f"{n} {label if label in PLAIN else f'with {label}'}" for label, n in counts.items()]
                parts.append("fixed points: " + ", ".join(own_words))
            said.append(f"{task}: {'; '.join(parts)}.")
        return " ".join(said)

    @staticmethod
    def reproduction(settings: CtdFig3Settings, files: Mapping[Need, str]) -> pd.DataFrame:
        """Numbers of fixed points of the flip-flop by stability, beside those of a cube."""
        if settings.nbff is None or not settings.nbff.dataset:
            return comparison("ctd_fig3", NOTHING)
        points = _portraits(settings.nbff, 1, files).systems[0].points
        labels = [label for label in MARKERS if label != "marginal"]
        own = [float((points["stability"] == label).sum()) for label in labels]
        about = {"series": "nbff", "metric": "n_fixed_points", "dataset": settings.nbff.dataset, "model": ""}
        return comparison("ctd_fig3", pd.DataFrame({**about, "x": range(4), "value": own}))


def _missing(name: str, key: str = "") -> MissingError:
    path = f"{name}.{key}" if key else name
    return MissingError(f"`{path}` of this figure is not set")


def _portraits(shown: Shown, n_trials: int, files: Files) -> Portraits:
    return portraits_of(shown.dataset, [], 0, n_trials, files, shown.condition)


def _draw_trial(
    canvas: Canvas,
    grid: GridSpec,
    place: int,
    name: str,
    shown: Shown | ShownReaches | None,
    files: Files,
    rows: Rows,
) -> None:
    """Inputs of one trial, and answers over targets."""
    panels = dict(
        zip(("inputs", "answers"), (canvas.add_subplot(grid[place, column]) for column in range(2)), strict=True)
    )
    try:
        if shown is None:
            raise _missing(name)
        activity, facts = read_hdf5(files["activity", shown.network, shown.seed, ""])
    except MissingError as error:
        for ax in panels.values():
            say_missing(ax, error)
        return
    trial = _choose(activity, facts, shown)
    length = int(activity["n_bins"][trial]) if "n_bins" in activity else len(activity["inputs"][trial])
    time = facts["bin_s"] * np.arange(length)
    one = {key: values[trial, :length] for key, values in activity.items() if values.ndim == 3}
    response = next((activity[key][trial] for key in ("response_start", "go_bin") if key in activity), None)
    titles = (f"{shown.network}: inputs of trial {trial}", "targets and answers")
    for letter, title, (panel, ax) in zip(LETTERS[name], titles, panels.items(), strict=False):
        channels = (_inputs if panel == "inputs" else _answers)(one, facts)
        _draw_stack(ax, time, channels, shared="behavior" not in one)
        _title(ax, letter, title)
        if response is not None:
            ax.axvline(facts["bin_s"] * int(response), color="0.4", lw=0.8, ls=":")
        for channel, curves in channels.items():
            for curve, values in curves.items():
                about = {"task": name, "panel": panel, "channel": channel, "curve": curve, "trial": trial}
                rows.append(pd.DataFrame({**about, "time_s": time, "value": values}))
    rows.append(pd.DataFrame([{"task": name, "panel": "success", "value": float(facts["success"])}]))


def _choose(activity: Arrays, facts: Mapping[str, Any], shown: Shown | ShownReaches) -> int:
    """Number of the trial that is shown."""
    trials = _of_condition(activity, facts, shown.network, shown.condition)
    if shown.trial >= len(trials):
        which = f" of condition {shown.condition!r}" if shown.condition else ""
        raise DatasetError(
            f"figure `ctd_fig3`: trial {shown.trial} of {len(trials)} trials{which} of network {shown.network!r}, "
            "counted from 0"
        )
    return int(trials[shown.trial])


def _of_condition(activity: Arrays, facts: Mapping[str, Any], network: str, condition: str) -> np.ndarray:
    names = [str(name) for name in facts["condition_names"]]
    if not condition:
        return np.arange(len(activity["success"]))
    if condition not in names:
        raise DatasetError(
            f"figure `ctd_fig3`: network {network!r} has no condition called {condition!r}; {nearest(condition, names)}"
        )
    return np.flatnonzero(activity["condition"] == names.index(condition))


def _inputs(one: Arrays, facts: Mapping[str, Any]) -> Channels:
    """Inputs that the trial uses: as they are meant, over what the network is given where that is the same in noise."""
    names = [str(name) for name in facts["true_input_names"]]
    noisy = names == [str(name) for name in facts["input_names"]]
    used = [channel for channel in range(len(names)) if np.abs(one["inputs_true"][:, channel]).max() > 0]
    return {
        names[channel]: ({"given": one["inputs"][:, channel]} if noisy else {})
        | {"meant": one["inputs_true"][:, channel]}
        for channel in used
    }


def _answers(one: Arrays, facts: Mapping[str, Any]) -> Channels:
    """Targets and answers, which are what a body did where there is one; then also what drives its muscles."""
    answers = one.get("behavior", one["outputs"])
    channels = {
        str(name): {"target": one["targets"][:, channel], "answer": answers[:, channel]}
        for channel, name in enumerate(facts["target_names"])
    }
    if "behavior" in one:
        channels["muscles"] = dict(zip(map(str, facts["output_names"]), one["outputs"].T, strict=True))
    return channels


def _draw_stack(ax: Axes, time: np.ndarray, channels: Channels, shared: bool) -> None:
    """Channels above one another, each between its own limits or, if `shared`, between those of all."""
    all_curves = [values for curves in channels.values() for values in curves.values()]
    for place, curves in enumerate(channels.values()):
        seen = np.concatenate(all_curves if shared else list(curves.values()))
        low, extent = seen.min(), np.ptp(seen) or 1.0
        for number, (curve, values) in enumerate(curves.items()):
            style = CURVES.get(curve, {"color": f"C{number}", "lw": 0.6})
            ax.plot(time, 0.85 * (values - low) / extent - place, **style)
    ax.set_yticks(0.42 - np.arange(len(channels)), channels)
    ax.tick_params(axis="y", length=0, labelsize=6 if len(channels) < 8 else 5)
    ax.set_ylim(-len(channels) + 0.95, 1.0)
    ax.set_xlabel("time (s)", labelpad=1)


def _draw_fixed_points(
    canvas: Canvas, place: SubplotSpec, name: str, shown: Shown | None, n_trials: int, files: Files, rows: Rows
) -> list[str]:
    """Fixed points among trajectories; gives the stabilities that were seen."""
    try:
        if shown is None or not shown.dataset:
            raise _missing(name, "dataset" if shown else "")
        portraits = _portraits(shown, n_trials, files)
    except MissingError as error:
        say_missing(canvas.add_subplot(place), error)
        return []
    portrait = portraits.systems[0]
    ax = canvas.add_subplot(place, **portraits.space.projection)
    draw_points(ax, portrait, portraits)
    ax.set_title("")
    _title(ax, LETTERS[name][2], f"fixed points, {_input_in_words(portrait, shown, files)}")
    if len(portraits.space.share) == 3:
        ax.set_box_aspect((1, 1, 1), zoom=1.1)
        ax.view_init(elev=24, azim=-72)
    rows.append(portrait.points.assign(task=name, panel="fixed points"))
    for number, trial in enumerate(portrait.trajectories):
        where = {f"pc{axis + 1}": values for axis, values in enumerate(trial.T)}
        rows.append(pd.DataFrame({"task": name, "panel": "trajectories", "trial": number, **where}))
    return portrait.points["stability"].unique().tolist()


def _input_in_words(portrait: Portrait, shown: Shown, files: Files) -> str:
    """Constant input under which the points were found."""
    if not len(portrait.found):
        return "none found"
    names = read_session(files["dataset", shown.dataset]).names.get("inputs", [])
    values = portrait.found.input[0].tolist()
    said = [f"{name} {value:g}" for name, value in zip(names, values, strict=True) if value]
    return f"under\n      {', '.join(said)}" if said else "without input"


def _draw_reaches(ax: Axes, shown: ShownReaches | None, n_trials: int, files: Files, rows: Rows) -> None:
    """Paths of the hand of reaches that are pushed to either side, and that are not, as many of each at most."""
    try:
        if shown is None:
            raise _missing("random_target")
        activity, facts = read_hdf5(files["activity", shown.network, shown.seed, shown.variant])
    except MissingError as error:
        say_missing(ax, error)
        return
    names = [str(name) for name in facts["condition_names"]]
    reaches = np.array([not names[one].startswith("catch") for one in activity["condition"]])
    force = activity["force"]
    sideways = force[..., 0].sum(1)
    pushed = (force != 0).any((1, 2))
    kinds = (~pushed, pushed & (sideways < 0), pushed & (sideways >= 0))
    each = max(1, n_trials // len(kinds))
    for (kind, (colour, style, marker)), own in zip(PUSHED.items(), kinds, strict=True):
        for trial in np.flatnonzero(own & reaches)[:each]:
            hand, target = activity["behavior"][trial, :, :2], activity["targets"][trial, -1]
            ax.plot(*hand.T, color=colour, ls=style, lw=0.8)
            ax.plot(*target, color=TRUTH_COLOUR, marker="+", ms=5, ls="none")
            if marker:
                begins = np.flatnonzero((force[trial] != 0).any(1))[0]
                ax.plot(*hand[begins], color=colour, marker=marker, ms=3.5, ls="none")
            about = {"task": "random_target", "panel": "reaches", "curve": kind, "trial": trial}
            time = facts["bin_s"] * np.arange(len(hand))
            rows.append(pd.DataFrame({**about, "time_s": time, "x_m": hand[:, 0], "y_m": hand[:, 1]}))
        if (own & reaches).any():
            ax.plot([], [], color=colour, ls=style, lw=0.8, marker=marker or None, ms=3.5, label=kind)
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.12)
    ax.set_xlabel("x (m)", labelpad=1)
    ax.set_ylabel("y (m)", labelpad=4)
    ax.legend(loc="upper center", bbox_to_anchor=(0.42, -0.13), ncols=3, columnspacing=0.8, handlelength=1.3)
    _title(ax, "I", f"the hand, {f'variant {shown.variant!r}' if shown.variant else 'reaches'}")


def _title(ax: Axes, letter: str, title: str) -> None:
    write = ax.text2D if hasattr(ax, "text2D") else ax.text
    write(0.0, 1.04, f"$\\bf{{{letter}}}$  {title}", transform=ax.transAxes, va="bottom")
