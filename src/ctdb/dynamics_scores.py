"""Does a fit recover the dynamics? A system and its fits side by side, as rows of the scores table.

Scores run from 0, which a system without dynamics has, to 1, which the true system has, but for distances, Lyapunov
exponents and dimensions, which have their own units, and of which the ceiling row says what is right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ctdb.datasets import SpikeDataset
from ctdb.dynamics import (
    FixedPoints,
    closed_loop_step,
    compare_fixed_points,
    connections,
    find_fixed_points,
    jacobian_of,
)
from ctdb.dynamics.flow import Alignment, Forecast, align, flow_field_sums, forecast
from ctdb.dynamics.jacobians import Step
from ctdb.dynamics.lyapunov import lyapunov_spectrum
from ctdb.errors import ConfigError, DynamicsError, MetricError, nearest
from ctdb.files import read_hdf5, read_yaml, write_hdf5
from ctdb.metrics import TrialSums
from ctdb.models import base as models
from ctdb.networks import base as networks
from ctdb.scores import CEILING, FLOOR, anchor_labels, outcome, table_of, undefined
from ctdb.settings import DYNAMICS_SCORES, DynamicsSettings
from ctdb.tasks.base import Task, TaskTrials

POINT_SCORES = tuple(name for name in DYNAMICS_SCORES if name.startswith("fixed_point"))
EXPONENT_SCORES = ("lyapunov_max", "kaplan_yorke_dimension")
FORMAT = "ctdb-dynamics-1"
POINTS, FACTS = "fixed_points.h5", "dynamics.h5"

Score = float | TrialSums | MetricError | DynamicsError
"""A score, or why there is none."""


@dataclass(frozen=True)
class System:
    """A system and what it did on the trials of a dataset.

    Attributes
    ----------
    step
        ``step(state (n, d), input (n, i))``; None where only states are known.
    states, inputs
        Split to (trials, bins, d), None where the states are not known, and (trials, bins, i), None for no input.
    constant
        Input under which it is left to itself.
    """

    step: Step | None
    states: Mapping[str, np.ndarray | None]
    inputs: Mapping[str, np.ndarray | None]
    constant: Float[np.ndarray, " inputs"]


def constant_input(
    wanted: str | Sequence[float] | Mapping[str, float],
    names: Sequence[str],
    given: Float[np.ndarray, "samples inputs"],
) -> Float[np.ndarray, " inputs"]:
    """Constant input that the settings ask for.

    Parameters
    ----------
    wanted
        `zero`, `mean`, a value for each channel, or values by name.
    names
        Names of the channels.
    given
        What the system was given, for its mean.

    Raises
    ------
    ConfigError
        If values and channels do not go together.
    """
    n_inputs = given.shape[1]
    if wanted == "zero":
        return np.zeros(n_inputs)
    if wanted == "mean":
        return given.mean(0)
    if isinstance(wanted, Mapping):
        for name in wanted:
            if name not in names:
                raise ConfigError(f"fixed_points.input: there is no channel {name!r}; {nearest(name, names)}")
        return np.array([float(wanted.get(name, 0.0)) for name in names])
    if len(wanted) != n_inputs:
        raise ConfigError(
            f"fixed_points.input: has {len(wanted)} values; expected {n_inputs}, one for each channel of {list(names)}"
        )
    return np.asarray(wanted, np.float64)


def true_system(
    dataset: SpikeDataset, network: networks.Network | None, constant: Float[np.ndarray, " inputs"] | None = None
) -> System:
    """System behind a dataset: the network, or where that is not known the states alone."""
    return System(
        None if network is None else network.step,
        {name: trials.latents for name, trials in dataset.splits.items()},
        {name: trials.ext_input for name, trials in dataset.splits.items()},
        np.zeros(dataset.n_inputs) if constant is None else constant,
    )


def fit_system(
    dataset: SpikeDataset, model: models.Model, outputs: Mapping[str, np.ndarray], settings: DynamicsSettings
) -> System:
    """A fit: its latents, and the inputs it was given or inferred; inferred inputs are 0 where it is left to itself.

    Raises
    ------
    DynamicsError
        If it has no latents, or some that are not finite.
    """
    for name in dataset.splits:
        if f"{name}_latents" not in outputs:
            raise DynamicsError("the model infers no latents")
        if not np.isfinite(outputs[f"{name}_latents"][dataset[name].valid_bins]).all():
            raise DynamicsError(f"latents of the {name} trials are not finite")
    takes = dataset.n_inputs > 0 and model.takes_ext_input
    inputs = {
        name: outputs.get(f"{name}_gen_inputs", trials.ext_input if takes else None)
        for name, trials in dataset.splits.items()
    }
    constant = _of_dataset(dataset, settings) if takes else np.zeros(0)
    return System(model.step, {name: outputs[f"{name}_latents"] for name in dataset.splits}, inputs, constant)


def closed_loop_points(
    network: networks.Network, task: Task, trials: TaskTrials, settings: DynamicsSettings
) -> FixedPoints:
    """Fixed points of a network together with the body that it moves, under a constant input of the task's own."""
    tensors = trials.tensors()
    step = closed_loop_step(network, task.body(), tensors)
    own = task.input_names[len(task.input_names) - step.n_inputs :]
    given = tensors["inputs"].double().numpy().reshape(-1, step.n_inputs)
    constant = constant_input(settings.fixed_points.input, own, given)
    return _points(step, step.run(tensors), constant, settings, task.settings.bin_s)


def fixed_points_of(system: System, dataset: SpikeDataset, settings: DynamicsSettings) -> FixedPoints:
    """Fixed points of a system near the states of its train trials."""
    states = torch.from_numpy(system.states["train"][dataset["train"].valid_bins]).double()
    return _points(system.step, states, system.constant, settings, dataset.bin_s)


def no_points(n_states: int) -> FixedPoints:
    """What a system that was not searched has: nothing."""

    def nothing(*shape: int) -> Tensor:
        return torch.zeros(0, *shape, dtype=torch.float64)

    none = torch.zeros(0, dtype=torch.long)
    square, by_input = nothing(n_states, n_states), nothing(n_states, 0)
    return FixedPoints(
        nothing(n_states), nothing(0), nothing(), square, by_input, nothing(), none, none, none, radius=1.0
    )


def true_dynamics(
    dataset: SpikeDataset,
    network: Path | str | None,
    settings: DynamicsSettings,
    name: str,
    out: Path | str,
    task: Task | None = None,
    trials: TaskTrials | None = None,
) -> pd.DataFrame:
    """Analyse the system behind a dataset, and score it and a system that never moves: ceiling and floor.

    Parameters
    ----------
    dataset
        What fits are compared on; its latents are the system's states.
    network
        Folder of the network behind it; None where there is none, as for a known attractor.
    settings
        What to do.
    name
        Fills the column `dataset`.
    out
        Folder that `fixed_points.h5` and `dynamics.h5` go to.
    task, trials
        The network's task and simulation trials. Where the task has a body, the fixed points are those of network and
        body together, which no fit of spikes alone can have.

    Returns
    -------
    Rows of the scores table.

    Raises
    ------
    ConfigError
        If the constant input does not fit the channels, or is a list where the network moves a body: fits are given
        its feedback too, and only names say which channels are meant.
    """
    loaded = None if network is None else networks.load(network)
    in_loop = task is not None and task.body() is not None
    alone = loaded is not None and not in_loop
    if in_loop and isinstance(settings.fixed_points.input, list):
        raise ConfigError(
            f"dynamics.{name}.fixed_points.input: is a list, but the network moves a body, whose feedback is among the "
            "inputs of fits; give the task's own channels by name"
        )
    system = true_system(dataset, loaded, _of_dataset(dataset, settings) if alone else None)
    if loaded is None:
        points = no_points(0)
    elif in_loop:
        points = closed_loop_points(loaded, task, trials, settings)
    else:
        points = fixed_points_of(system, dataset, settings)
    points.save(Path(out) / POINTS)
    comparison = Comparison(dataset, system, points if alone else None, settings)
    no_exponents = replace(comparison, settings=settings.model_copy(update={"lyapunov": None}))
    scores, facts = {}, {}
    if loaded is not None:  # without its body, a network is another system, of other exponents
        scores, facts = (comparison if alone else no_exponents).of(system, points)
    write_hdf5(Path(out) / FACTS, facts, {"format": FORMAT, "status": "ok", "compares_points": alone})
    floor, _ = no_exponents.of(comparison.still, no_points(1))
    anchors = [
        comparison.rows(scores, {**anchor_labels(name), "model": CEILING, "role": "ceiling"}),
        comparison.rows(floor, {**anchor_labels(name), "model": FLOOR, "role": "floor"}),
    ]
    return pd.concat(anchors, ignore_index=True)


def fit_dynamics(
    dataset: SpikeDataset,
    fit: Path | str,
    network: Path | str | None,
    truth: Path | str,
    settings: DynamicsSettings,
    labels: Mapping[str, Any],
    out: Path | str,
) -> pd.DataFrame:
    """Analyse a fit, and score its dynamics against the true ones.

    Parameters
    ----------
    dataset
        What it was fitted to.
    fit
        Folder of the fit.
    network
        Folder of the network behind the dataset; None where there is none.
    truth
        Folder that :func:`true_dynamics` wrote to.
    settings
        What to do.
    labels
        Values of the columns `dataset`, `model`, `kind`, `sweep` and `seed`.
    out
        Folder that `fixed_points.h5` and `dynamics.h5` go to.

    Returns
    -------
    Rows of the scores table. A fit that diverged, or that has no states or step to analyse, has them without values,
    with its status and reason.
    """
    spec = read_yaml(Path(fit) / "spec.yaml")
    labels = {**labels, "role": "fit"}
    system = true_system(dataset, None if network is None else networks.load(network))
    points = None
    if read_hdf5(Path(truth) / FACTS)[1]["compares_points"]:
        points = FixedPoints.load(Path(truth) / POINTS)
    comparison = Comparison(dataset, system, points, settings)
    failure = None if spec["status"] == "ok" else {"status": spec["status"], "reason": spec["reason"]}
    if failure is None:
        try:
            own = fit_system(dataset, models.load(fit), read_hdf5(Path(fit) / "output.h5")[0], settings)
            found = fixed_points_of(own, dataset, settings)
        except (DynamicsError, NotImplementedError) as why:
            failure = undefined(why)
    if failure is not None:
        no_points(0).save(Path(out) / POINTS)
        write_hdf5(Path(out) / FACTS, {}, {"format": FORMAT, "status": failure["status"]})
        return table_of([{**comparison.row(name, labels), **failure} for name in comparison.names])
    found.save(Path(out) / POINTS)
    scores, facts = comparison.of(own, found)
    write_hdf5(Path(out) / FACTS, facts, {"format": FORMAT, "status": "ok"})
    return comparison.rows(scores, labels)


@dataclass(frozen=True)
class Comparison:
    """Everything that is compared with one true system, on the split that scores are reported on.

    Attributes
    ----------
    dataset
        Its dataset.
    truth
        The system.
    points
        Its fixed points, where there are any to compare with.
    settings
        What to compare.
    """

    dataset: SpikeDataset
    truth: System
    points: FixedPoints | None
    settings: DynamicsSettings

    @property
    def still(self) -> System:
        """A system without dynamics: one state, which never moves, in place of all."""
        shape = {name: (*trials.recon_data.shape[:2], 1) for name, trials in self.dataset.splits.items()}
        states = {name: np.zeros(size) for name, size in shape.items()}
        return System(lambda state, _: state, states, dict.fromkeys(shape), np.zeros(0))

    @property
    def knows_states(self) -> bool:
        """Whether there are true states."""
        return self.truth.states["train"] is not None

    @property
    def names(self) -> list[str]:
        """Scores that a fit can have here."""
        names = [*POINT_SCORES] if self.points is not None else []
        names += ["flow_field_r2"] if self.knows_states else []
        names += ["forecast_skill"] if self.knows_states and self.settings.forecast else []
        return names + ([*EXPONENT_SCORES] if self.settings.lyapunov else [])

    def of(self, system: System, points: FixedPoints) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
        """Scores of a system, and the arrays behind them.

        ``to_true_weights`` and ``to_true_offset`` carry its states into the true ones; `pairs` (true, found),
        `distance` and `time_constant_ratio` are those of fixed points; `forecast_error` and `forecast_persistence` go
        by bins ahead; `lyapunov` and `lyapunov_error` are in nats per second.
        """
        scores: dict[str, Score] = {}
        facts: dict[str, np.ndarray] = {}
        split = self.dataset.report_split
        if self.knows_states:
            alignment = self._alignment(system)
            facts |= {"to_true_weights": alignment.to_true.weights, "to_true_offset": alignment.to_true.offset}
            scores["flow_field_r2"] = self._flow(system, alignment)
            if self.settings.forecast is not None:
                scores["forecast_skill"], curves = self._forecast(system, alignment)
                facts |= curves
        if self.points is not None:
            found, arrays = self._points(system, points)
            scores |= found
            facts |= arrays
        if self.settings.lyapunov is not None:
            found, arrays = self._exponents(system, split)
            scores |= found
            facts |= arrays
        return scores, facts

    def rows(self, scores: Mapping[str, Score], labels: Mapping[str, Any]) -> pd.DataFrame:
        """Scores as rows of the table."""
        rows = []
        for name, score in scores.items():
            values = (
                undefined(score)
                if isinstance(score, Exception)
                else outcome(score, labels["dataset"], self.dataset.report_split)
            )
            rows.append({**self.row(name, labels), **values})
        return table_of(rows)

    def row(self, name: str, labels: Mapping[str, Any]) -> dict[str, Any]:
        """What all rows of a score have."""
        split = self.dataset.report_split
        return {"session": "", **labels, "split": split, "metric": name, "n_trials": self.dataset[split].n_trials}

    def _alignment(self, system: System) -> Alignment:
        true, own = (one.states["train"] for one in (self.truth, system))
        return align(true, own, n_bins_train=self.dataset["train"].n_bins)

    def _flow(self, system: System, alignment: Alignment) -> Score:
        """One minus the squared error of the velocity in units of that of a state that never moves."""
        try:
            own = self._velocity_error(system, alignment)
            of_still = self._velocity_error(self.still, self._alignment(self.still))
        except MetricError as why:
            return why
        n = own.terms.shape[1]
        return TrialSums(
            np.concatenate([own.terms, of_still.terms], 1),
            lambda totals: 1 - own.combine(totals[..., :n]) / of_still.combine(totals[..., n:]),
        )

    def _velocity_error(self, system: System, alignment: Alignment) -> TrialSums:
        split = self.dataset.report_split
        states, own_input = self.truth.states[split], system.inputs[split]
        return flow_field_sums(
            self.truth.step,
            system.step,
            alignment,
            states,
            self.truth.inputs[split],
            np.zeros((*states.shape[:2], 0)) if own_input is None else own_input,
            self.dataset[split].n_bins,
        )

    def _forecast(self, system: System, alignment: Alignment) -> tuple[Score, dict[str, np.ndarray]]:
        """Skill of free runs: one minus their squared error in units of that of the mean train state."""
        try:
            ahead = self._free_runs(system, alignment)
            of_mean = self._free_runs(self.still, self._alignment(self.still))
        except MetricError as why:
            return why, {}
        made = ahead.n_forecasts > 0  # not where the error is a number: one that is none must not drop out
        errors, of_means = ((one.error * one.n_forecasts)[made].sum() for one in (ahead, of_mean))
        curves = {"forecast_error": ahead.error, "forecast_persistence": ahead.persistence}
        if not np.isfinite(errors):
            return MetricError("free runs leave the finite numbers"), curves
        return float(1 - errors / of_means), curves

    def _free_runs(self, system: System, alignment: Alignment) -> Forecast:
        split, wanted = self.dataset.report_split, self.settings.forecast
        states = self.truth.states[split]
        lengths = self.dataset[split].n_bins
        longest = states.shape[1] if lengths is None else int(lengths.max())
        starts = list(range(wanted.every, longest - 1, wanted.every))
        if not starts:
            raise MetricError(
                f"no bin to forecast from: `forecast.every` is {wanted.every}, and trials have up to {longest} bins"
            )
        return forecast(system.step, alignment, states, starts, wanted.horizon, system.inputs[split], lengths)

    def _points(self, system: System, points: FixedPoints) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
        valid = self.dataset["train"].valid_bins
        try:
            found = compare_fixed_points(
                self.points,
                points,
                self.truth.states["train"][valid],
                system.states["train"][valid],
                within=self.settings.fixed_points.within,
                truth_step=self.truth.step,
                found_step=system.step,
            )
        except DynamicsError as why:
            return dict.fromkeys(POINT_SCORES, why), {}
        shares = {
            "fixed_point_stability": found.stability_agreement,
            "fixed_point_index": found.index_agreement,
            "fixed_point_time_constants": found.time_constant_agreement,
            "fixed_point_edges": found.edge_agreement,
        }
        # A share of nothing: no point matches, or no connection is left between those that do.
        of_all: dict[str, Score] = {"fixed_point_recall": found.recall} | {
            name: 0.0 if np.isnan(share) else found.recall * share for name, share in shares.items()
        }
        if not len(self.points):
            of_all = dict.fromkeys(of_all, MetricError("the true system has no fixed point"))
        elif not self._has_edges:
            of_all["fixed_point_edges"] = MetricError("no point with one unstable direction leads to another point")
        precise = found.precision if len(points) else MetricError("no fixed point was found")
        distance = found.distance_mean if len(found.pairs) else MetricError("no fixed point matches a true one")
        scores = {**of_all, "fixed_point_precision": precise, "fixed_point_distance": distance}
        arrays = {
            "pairs": found.pairs,
            "distance": found.distance,
            "time_constant_ratio": found.time_constant_ratio,
        }
        return scores, arrays

    @cached_property
    def _has_edges(self) -> bool:
        lines = self.points.index == 1
        return bool(connections(self.points, self.truth.step)[lines].any())

    def _exponents(self, system: System, split: str) -> tuple[dict[str, Score], dict[str, np.ndarray]]:
        wanted = self.settings.lyapunov
        start = torch.from_numpy(system.states[split][: wanted.n_trajectories, 0]).double()
        linearise = jacobian_of(system.step)
        try:
            found = lyapunov_spectrum(
                system.step,
                start,
                wanted.n_bins,
                torch.from_numpy(system.constant),
                wanted.transient,
                self.dataset.bin_s,
                lambda state, input: linearise(state, input).state,
                min(wanted.n_exponents, start.shape[1]),
            )
        except MetricError as why:
            return dict.fromkeys(EXPONENT_SCORES, why), {}
        few = MetricError(f"the largest {len(found.exponents)} exponents do not decide; raise `lyapunov.n_exponents`")
        dimension = few if np.isnan(found.dimension) else found.dimension
        scores = {"lyapunov_max": float(found.per_second[0]), "kaplan_yorke_dimension": dimension}
        return scores, {"lyapunov": found.per_second, "lyapunov_error": found.standard_error_per_second}


def _of_dataset(dataset: SpikeDataset, settings: DynamicsSettings) -> Float[np.ndarray, " inputs"]:
    """Constant input in the channels of the dataset's external input, none where it has no such."""
    given, valid = dataset["train"].ext_input, dataset["train"].valid_bins
    seen = np.zeros((1, 0)) if given is None else given[valid].astype(np.float64)
    return constant_input(settings.fixed_points.input, dataset.names.get("inputs", []), seen)


def _points(
    step: Step, states: Tensor, constant: Float[np.ndarray, " inputs"], settings: DynamicsSettings, bin_s: float
) -> FixedPoints:
    wanted = settings.fixed_points
    return find_fixed_points(
        step,
        states,
        constant,
        n_starts=wanted.n_starts,
        thorough=wanted.thorough,
        seed=wanted.seed,
        bin_s=bin_s,
    )
