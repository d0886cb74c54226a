"""The configuration: one YAML file in, a checked plan of plain values out.

A plan says what every stage of the DAG does. Whatever is wrong with the file is found here, before any job starts, and
told with the YAML path of the key and the nearest valid name. The keys of a task, network, model or figure and their
defaults are declared where that kind is defined; this module knows the rest.
"""

import contextlib
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ValidationError, model_validator

from ctdb.datasets.ibl.recording import RECORDINGS
from ctdb.datasets.kind import DATASETS
from ctdb.errors import ConfigError, WriteError, nearest
from ctdb.figures import FIGURES
from ctdb.figures.planned import Need, Planned
from ctdb.files import write_text
from ctdb.metrics.case import METRICS
from ctdb.models import MODELS
from ctdb.models.observations import OBSERVATIONS
from ctdb.networks import NETWORKS
from ctdb.provenance import fingerprint
from ctdb.registry import Registry
from ctdb.settings import DYNAMICS_SCORES, DynamicsSettings, NonEmpty, Seed, Settings
from ctdb.tasks import TASKS

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
SWEEP_VALUE = re.compile(r"[A-Za-z0-9_.+-]+")
DEFAULT_FOLDERS = {"CTDB_DATA": "../shared/data", "CTDB_IBL_CACHE": "../ibl_cache"}
"""Stand for these variables in a path where the environment does not set them."""


class FitsEntry(Settings):
    """One block of fits: every dataset with every model at every point of the sweep with every seed."""

    datasets: NonEmpty[str]
    models: NonEmpty[str]
    seeds: NonEmpty[Seed] = [0]
    sweep: dict[str, NonEmpty[Any]] = {}


class ScoresSettings(Settings):
    """What to score: `applicable` for every metric that a dataset can have, or a list that each must have.

    `also` names costly metrics, which `applicable` leaves out, to be made where a dataset can have them.
    """

    metrics: Literal["applicable"] | NonEmpty[str] = "applicable"
    also: list[str] = []

    @model_validator(mode="after")
    def _beside_applicable(self) -> "ScoresSettings":
        if self.also and self.metrics != "applicable":
            raise ValueError("also goes with `metrics: applicable`; add its names to the list of metrics")
        return self


class Layout(Settings):
    """The top level of the file; the entries of each section are checked by their kind."""

    results: str = "results"
    tasks: dict[str, dict[str, Any]] = {}
    networks: dict[str, dict[str, Any]] = {}
    recordings: dict[str, dict[str, Any]] = {}
    datasets: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]]
    fits: NonEmpty[FitsEntry]
    scores: ScoresSettings = ScoresSettings()
    dynamics: dict[str, DynamicsSettings] = {}
    figures: dict[str, dict[str, Any]] = {}


def load(path: Path | str, cache: Path | str | None = None) -> dict[str, Any]:
    """Read and check a configuration.

    Parameters
    ----------
    path
        YAML file.
    cache
        Folder that remembers plans by the contents of the file and of the code that checks it. Checking imports torch
        (seconds on a network file system); a remembered plan does not.

    Returns
    -------
    The plan, of plain values: `results`; `tasks`, `networks` (with their `task`), `recordings`, `datasets`, `models`
    and `figures` (with what each `needs` and is `missing`, and whether it is `interactive` and `reproduces` published
    numbers) with all defaults filled in; `fits`, one mapping per fit; `metrics` and `also`; `dynamics`, dataset to its
    analysis; `requires`, task to the `packages` that it needs beyond ctdb's own and how to `install` them; and
    `modules`, section to kind to the module that defines it.

    Raises
    ------
    ConfigError
        Lists everything that is wrong, one line each, beginning with the YAML path of the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give an existing file with --configfile") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8; save it as UTF-8") from None
    if cache is None:
        return _Checker(path, text).plan()
    registries = (TASKS, NETWORKS, DATASETS, MODELS, OBSERVATIONS, METRICS, FIGURES)
    code = fingerprint(__file__, *(module for registry in registries for module in registry.modules.values()))
    remembered = Path(cache) / f"plan-{hashlib.sha256(f'{code} {text}'.encode()).hexdigest()[:16]}.json"
    if remembered.exists():
        return json.loads(remembered.read_text())
    plan = _Checker(path, text).plan()
    with contextlib.suppress(WriteError):  # another process may be writing the same plan; it is only a shortcut
        write_text(remembered, json.dumps(plan))
    return plan


def data_path(path: str) -> Path:
    """Path of a user's file or folder, with ``~`` and environment variables expanded; some of these have defaults."""
    for variable, folder in DEFAULT_FOLDERS.items():
        if variable not in os.environ:
            path = path.replace(f"${{{variable}}}", folder).replace(f"${variable}", folder)
    return Path(os.path.expandvars(path)).expanduser()


def _requirements(kind: str) -> dict[str, Any]:
    return {"packages": list(TASKS[kind].requires), "install": TASKS[kind].install}


class _Checker:
    """Checks one file; collects every problem before it gives up."""

    def __init__(self, path: Path, text: str):
        self.path, self.problems = path, []
        try:
            self.raw = _Loader(text).get_single_data()
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from None
        if not isinstance(self.raw, dict):
            raise ConfigError(f"{path}: expected a mapping with `datasets`, `models` and `fits`")

    def plan(self) -> dict[str, Any]:
        """Check everything and return the plan."""
        layout = self._validate(Layout, self.raw, "")
        self._give_up_if_wrong()
        results = self._results(layout.results)
        for section in ("tasks", "networks", "recordings", "datasets", "models", "figures"):
            self._distinct(section, getattr(layout, section))
        tasks = self._kinds("tasks", layout.tasks, TASKS)
        for name, task in tasks.items():
            for variant in task["variants"]:  # names files
                self._good_name(variant, f"tasks.{name}.variants.{variant}")
            self._distinct(f"tasks.{name}.variants", task["variants"])
            if (missing := TASKS[task["kind"]].missing()) is not None:
                self.problems.append(f"tasks.{name}: {missing}")
        network_tasks = {name: dict(entry).pop("task", None) for name, entry in layout.networks.items()}
        own = {name: {k: v for k, v in entry.items() if k != "task"} for name, entry in layout.networks.items()}
        networks = self._kinds("networks", own, NETWORKS)
        for name, task in network_tasks.items():
            self._known("task", task, layout.tasks, f"networks.{name}.task")
            if name in networks:
                networks[name]["task"] = task
        recordings = self._recordings(layout.recordings)
        datasets = self._datasets(layout, tasks)
        models = self._kinds("models", layout.models, MODELS)
        figures = self._kinds("figures", layout.figures, FIGURES)
        metrics = None if layout.scores.metrics == "applicable" else list(layout.scores.metrics)
        self._metrics(metrics or [], "scores.metrics")
        self._metrics(layout.scores.also, "scores.also")
        self._give_up_if_wrong()
        fits = self._fits(layout, models)
        self._give_up_if_wrong()
        self._heldout(datasets, metrics, fits)
        self._dynamics(layout, fits)
        planned = Planned(
            tuple((fit["dataset"], fit["model"], fit["seed"]) for fit in fits),
            {name: settings.dsa is not None for name, settings in layout.dynamics.items()},
        )
        for name, settings in figures.items():
            kind = FIGURES[settings["kind"]]
            needs = list(dict.fromkeys(kind.needs(kind.Settings(**settings), planned)))
            missing = self._needs(name, needs, layout, tasks, datasets, planned)
            self._metrics(settings.get("metrics", []), f"figures.{name}.metrics", DYNAMICS_SCORES)
            self._fields(name, settings, datasets)
            self._session(name, settings, layout)
            self._figure_of_dynamics(name, settings, layout, fits)
            self._figure_of_sweep(name, settings, fits)
            figures[name] = {
                "settings": settings,
                "needs": [list(need) for need in needs if need not in missing],
                "missing": [[list(need), reason] for need, reason in missing.items()],
                "interactive": kind.interactive is not None,
                "reproduces": kind.reproduction is not None,
            }
        self._give_up_if_wrong()
        registries = {
            "tasks": TASKS,
            "networks": NETWORKS,
            "datasets": DATASETS,
            "models": MODELS,
            "figures": FIGURES,
            "metrics": METRICS,
        }
        return {
            "results": results,
            "tasks": tasks,
            "networks": networks,
            "recordings": recordings,
            "datasets": datasets,
            "models": models,
            "fits": fits,
            "metrics": metrics,
            "also": list(layout.scores.also),
            "dynamics": {name: settings.model_dump() for name, settings in layout.dynamics.items()},
            "figures": figures,
            "requires": {name: _requirements(task["kind"]) for name, task in tasks.items()},
            "modules": {section: registry.modules for section, registry in registries.items()},
        }

    def _results(self, folder: str) -> str:
        """Folder of the results in one spelling, so that it is the same folder to Snakemake however it is written."""
        if not folder or set("{}") & set(folder):
            self.problems.append(f"results: {folder!r} is no folder that Snakemake can use; name one without {{ and }}")
        return os.path.normpath(os.path.expanduser(folder)) if folder else folder

    def _distinct(self, section: str, names: Iterable[str]) -> None:
        """Refuse names that are one file on a file system that ignores case."""
        seen: dict[str, str] = {}
        for name in names:
            if (other := seen.setdefault(name.casefold(), name)) != name:
                self.problems.append(f"{section}.{name}: differs from {other!r} in case only; rename one")

    def _metrics(self, metrics: list[str], where: str, more: Iterable[str] = ()) -> None:
        for index, metric in enumerate(metrics):
            known = [*METRICS.modules, *more]
            if self._known("metric", metric, known, f"{where}[{index}]") and metric in metrics[:index]:
                self.problems.append(f"{where}[{index}]: {metric!r} is listed twice")

    def _fields(self, figure: str, settings: Mapping[str, Any], datasets: Mapping[str, Any]) -> None:
        """Refuse a figure of fields that a mapped file is said not to have."""
        chosen = datasets.get(settings.get("dataset"), {"settings": {}})["settings"]
        keys = chosen.get("keys") if chosen.get("kind") == "file" else None
        for field in FIGURES[settings["kind"]].fields:
            if keys is not None and keys[field] is None:
                self.problems.append(
                    f"figures.{figure}.dataset: figure {settings['kind']!r} needs {field}, for which "
                    f"datasets.{settings['dataset']}.keys has no key; map one, or draw another dataset"
                )

    def _session(self, figure: str, settings: Mapping[str, Any], layout: Layout) -> None:
        """Refuse a figure of a session that its dataset has not, or of several at once."""
        if settings.get("dataset") not in layout.datasets or "session" not in settings:
            return
        sessions = _sessions_of(layout.datasets, settings["dataset"])
        if settings["session"] not in (sessions or [""]):
            expected = f"one of {sessions}" if sessions else "none: the dataset is one session"
            self.problems.append(f"figures.{figure}.session: is {settings['session']!r}; expected {expected}")

    def _figure_of_dynamics(
        self, figure: str, settings: Mapping[str, Any], layout: Layout, fits: list[dict[str, Any]]
    ) -> None:
        """Refuse scores of dynamics that are not analysed, and systems that are not among those compared."""
        dataset = settings.get("dataset")
        for index, metric in enumerate(layout.figures[figure].get("metrics", [])):
            if metric in DYNAMICS_SCORES and dataset in layout.datasets and dataset not in layout.dynamics:
                where = f"figures.{figure}.metrics[{index}]"
                self.problems.append(f"{where}: {metric!r} needs `dynamics.{dataset}`, which is not there; add it")
        if settings["kind"] == "dsa":
            fitted = {fit["model"] for fit in fits if fit["dataset"] == dataset}
            for index, model in enumerate(settings["models"]):
                self._known(f"model fitted to {dataset!r}", model, fitted, f"figures.{figure}.models[{index}]")

    def _figure_of_sweep(self, figure: str, settings: Mapping[str, Any], fits: list[dict[str, Any]]) -> None:
        """Refuse a figure against a setting that is not swept, or over no numbers that its axis can show."""
        if "key" not in settings or FIGURES[settings["kind"]].partial:
            return
        dataset, model, key = settings["dataset"], settings["model"], settings["key"]
        sweeps: dict[str, list[dict[str, Any]]] = {}
        for fit in fits:
            if fit["dataset"] == dataset and (point := json.loads(fit["sweep"])):
                sweeps.setdefault(fit["model"].partition("@")[0], []).append(point)
        where = f"figures.{figure}"
        if not self._known(f"model swept on {dataset!r}", model, sweeps, f"{where}.model"):
            return
        if not self._known(f"setting swept in {model!r}", key, set().union(*sweeps[model]), f"{where}.key"):
            return
        values = [point[key] for point in sweeps[model] if key in point]
        if odd := [value for value in values if isinstance(value, bool | str)]:
            self.problems.append(f"{where}.key: {key!r} takes {odd[0]!r}, which is no number; sweep over numbers")
        elif settings["log_x"] and min(values) <= 0:
            self.problems.append(
                f"{where}.log_x: {key!r} takes {min(values):g}, which has no logarithm; set it to false"
            )

    def _kinds(self, section: str, entries: Mapping[str, dict[str, Any]], registry: Registry) -> dict[str, Any]:
        """Entries of a section, each checked by the settings of its kind, with defaults filled in."""
        checked = {}
        for name, entry in entries.items():
            where = f"{section}.{name}"
            if self._good_name(name, where) and self._known(
                "kind", entry.get("kind"), registry.modules, f"{where}.kind"
            ):
                settings = self._validate(registry[entry["kind"]].Settings, entry, where)
                if settings is not None:
                    checked[name] = settings.model_dump()
        return checked

    def _recordings(self, entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Settings of recordings, each checked by its kind, with defaults filled in."""
        checked = {}
        for name, entry in entries.items():
            where = f"recordings.{name}"
            if self._good_name(name, where) and self._known("kind", entry.get("kind"), RECORDINGS, f"{where}.kind"):
                settings = self._validate(RECORDINGS[entry["kind"]], entry, where)
                if settings is not None:
                    checked[name] = settings.model_dump()
        return checked

    def _datasets(self, layout: Layout, tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Datasets: their `settings`, their `sources`, and whether their absence is excused (`optional`)."""
        checked = {}
        for name, settings in self._kinds("datasets", layout.datasets, DATASETS).items():
            kind = DATASETS[settings["kind"]]
            sources = kind.sources(kind.Settings(**settings))
            checked[name] = {"settings": settings, "sources": [list(source) for source in sources]}
            for index, (what, *names) in enumerate(sources):
                where = f"datasets.{name}"
                if what == "activity":
                    self._activity(names, layout.networks, tasks, where)
                    self._behavior(settings, tasks.get(layout.networks.get(names[0], {}).get("task")), where)
                elif what == "recording":
                    self._known("recording", names[0], layout.recordings, f"{where}.recording")
                elif what == "dataset":
                    key = "dataset" if "dataset" in settings else f"datasets[{index}]"
                    if self._known("dataset", names[0], layout.datasets, f"{where}.{key}"):
                        self._not_circular(name, layout.datasets)
        return checked

    def _not_circular(self, name: str, entries: Mapping[str, dict[str, Any]]) -> None:
        """Refuse a dataset that is made from itself, at whatever remove."""
        seen, waiting = set(), [name]
        while waiting:
            entry = entries.get(waiting.pop(), {})
            for source in (entry.get("dataset"), *(entry.get("datasets") or [])):
                if source == name:
                    self.problems.append(f"datasets.{name}: is made from itself; break the circle")
                    return
                if isinstance(source, str) and source not in seen:
                    seen.add(source)
                    waiting.append(source)

    def _fits(self, layout: Layout, models: Mapping[str, Any]) -> list[dict[str, Any]]:
        fits: dict[tuple[str, str, int], dict[str, Any]] = {}
        places: dict[tuple[str, str, int], str] = {}  # by settings: two labels of the same fit collide too
        for index, entry in enumerate(layout.fits):
            where = f"fits[{index}]"
            known = [
                self._known("dataset", name, layout.datasets, f"{where}.datasets[{i}]")
                for i, name in enumerate(entry.datasets)
            ] + [self._known("model", name, models, f"{where}.models[{i}]") for i, name in enumerate(entry.models)]
            if not all(known):
                continue
            for model, point in itertools.product(entry.models, list(self._points(entry, where))):
                spec = self._swept(models[model], point, f"{where}.sweep")
                if spec is None:
                    continue
                modules = MODELS[spec["kind"]].Settings(**spec).modules()
                label = model + _label(point)
                settings_of = json.dumps([model, spec], sort_keys=True)
                for dataset in entry.datasets:
                    self._takes_sessions(dataset, spec, layout, where)
                for dataset, seed in itertools.product(entry.datasets, entry.seeds):
                    same = (dataset, settings_of, seed)
                    if same in places:
                        self.problems.append(
                            f"{where}: the fit of {label!r} to {dataset!r} with seed {seed} is already made by "
                            f"{places[same]}; drop one of the two, or define a second model under another name"
                        )
                        continue
                    places[same] = where
                    fits[dataset, label, seed] = {
                        "dataset": dataset,
                        "model": label,
                        "seed": seed,
                        "kind": spec["kind"],
                        "sweep": json.dumps(point, sort_keys=True),
                        "spec": spec | {"seed": seed},
                        "modules": [MODELS.module(spec["kind"]), *modules],
                    }
        for fit in fits.values():
            if (initial := fit["spec"].get("initial_fit")) is not None:
                self._initial(fit, initial, fits)
        return list(fits.values())

    def _initial(self, fit: Mapping[str, Any], initial: Mapping[str, Any], fits: Mapping[tuple, Any]) -> None:
        """Refuse to begin with a fit that the plan does not make, or with itself."""
        key = (initial["dataset"], initial["model"], initial["seed"])
        where = f"models.{fit['model']}.initial_fit"
        seen = {(fit["dataset"], fit["model"], fit["seed"])}
        while key not in seen and key in fits:
            seen.add(key)
            following = fits[key]["spec"].get("initial_fit")
            if following is None:
                return
            key = (following["dataset"], following["model"], following["seed"])
        if key in seen:
            self.problems.append(f"{where}: begins with itself; break the circle")
        else:
            made = ", ".join(f"{dataset}/{model}/seed{seed}" for dataset, model, seed in fits)
            self.problems.append(f"{where}: no fit {key[0]}/{key[1]}/seed{key[2]} is made; there are: {made}")

    def _takes_sessions(self, dataset: str, spec: Mapping[str, Any], layout: Layout, where: str) -> None:
        """Refuse several sessions for a model of one."""
        if not _sessions_of(layout.datasets, dataset):
            return
        if not MODELS[spec["kind"]].takes_sessions:
            self.problems.append(
                f"{where}: {dataset!r} holds several sessions, but a model of kind {spec['kind']!r} takes one; "
                "fit its sessions one by one, or choose `lfads` or `band`"
            )
        elif spec.get("readin", {}).get("kind") == "identity":
            self.problems.append(
                f"{where}: {dataset!r} holds several sessions, each with its own neurons; set "
                f"`readin: {{kind: linear}}` (or `pcr`) in the model"
            )

    def _points(self, entry: FitsEntry, where: str) -> Iterator[dict[str, Any]]:
        """Points of the grid that a sweep spans; one empty point without a sweep."""
        for key, values in entry.sweep.items():
            for i, value in enumerate(values):
                if not isinstance(value, int | float | str) or not SWEEP_VALUE.fullmatch(str(value)):
                    self.problems.append(
                        f"{where}.sweep.{key}[{i}]: {value!r} cannot name a folder; expected a number or a word"
                    )
                    return
        keys = sorted(entry.sweep)
        for values in itertools.product(*(entry.sweep[key] for key in keys)):
            yield dict(zip(keys, values, strict=True))

    def _swept(self, settings: Mapping[str, Any], point: Mapping[str, Any], where: str) -> dict[str, Any] | None:
        """Settings of a model with a sweep's point put in; None if it does not fit."""
        changed = json.loads(json.dumps(settings))
        for key, value in point.items():
            *parents, last = key.split(".")
            target = changed
            for parent in parents:
                target = target.get(parent) if isinstance(target, dict) else None
            if not isinstance(target, dict):
                self.problems.append(f"{where}.{key}: leads nowhere; {nearest(parents[0], changed)}")
                return None
            if key in ("seed", "kind"):
                remedy = "list them in `seeds`" if key == "seed" else "define a model for each"
                self.problems.append(f"{where}.{key}: {key}s are not swept; {remedy}")
                return None
            target[last] = value
        checked = self._validate(MODELS[settings["kind"]].Settings, changed, where)
        return None if checked is None else checked.model_dump()

    def _heldout(self, datasets: Mapping[str, Any], metrics: list[str] | None, fits: list[dict[str, Any]]) -> None:
        """Refuse a held-out score of a dataset that says itself that it holds out no neuron."""
        asked = [metric for metric in metrics or [] if metric == "bits_per_spike_heldout"]
        for name in dict.fromkeys(fit["dataset"] for fit in fits):
            settings = datasets[name]["settings"]
            mapped = settings["kind"] == "file" and (settings["keys"] or {"encod_data": True})["encod_data"]
            if asked and settings.get("n_heldout") == 0 and not mapped:
                self.problems.append(
                    f"datasets.{name}.n_heldout: is 0, but scores.metrics asks for {asked[0]!r}; "
                    "hold out some neurons, or take the metric out"
                )

    def _dynamics(self, layout: Layout, fits: list[dict[str, Any]]) -> None:
        """Refuse dynamics of what is no dataset of one session that something is fitted to."""
        fitted = {fit["dataset"] for fit in fits}
        for name in layout.dynamics:
            where = f"dynamics.{name}"
            if not self._known("dataset", name, layout.datasets, where):
                continue
            if name not in fitted:
                self.problems.append(f"{where}: nothing is fitted to this dataset; add it to `fits`, or take it out")
            elif _sessions_of(layout.datasets, name):
                self.problems.append(f"{where}: is several sessions; name the datasets of single ones")

    def _needs(
        self,
        figure: str,
        needs: list[Need],
        layout: Layout,
        tasks: Mapping[str, Any],
        datasets: Mapping[str, Any],
        planned: Planned,
    ) -> dict[Need, str]:
        """Needs that the plan does not make, with the reason, of a figure that can be drawn without; else refuse it."""
        where, missing = f"figures.{figure}", {}
        partial = FIGURES[layout.figures[figure]["kind"]].partial
        for need in needs:
            what, *names = need
            if what == "activity":
                self._activity(names, layout.networks, tasks, where)
            elif what == "network_history":
                self._known("network", names[0], layout.networks, f"{where}.network")
            elif not self._known("dataset", names[0], datasets, f"{where}.dataset"):
                continue
            elif problem := self._unmade(need, layout, planned):
                key, text = problem
                if not partial or (key == "models" and names[1].partition("@")[0] not in layout.models):
                    self.problems.append(f"{where}.{key}: {text}")
                else:
                    missing[need] = text
        return missing

    def _unmade(self, need: Need, layout: Layout, planned: Planned) -> tuple[str, str] | None:
        """Why the plan does not make something of a dataset that is there, after the key that asks for it."""
        what, dataset, *names = need
        if what in ("dynamics", "dsa", "dynamics_scores", "dsa_scores") and dataset not in planned.dynamics:
            return "dataset", f"needs `dynamics.{dataset}`, which is not there; add it"
        if what in ("dsa", "dsa_scores") and not planned.dynamics[dataset]:
            return "dataset", f"needs `dynamics.{dataset}.dsa`, which is null; give it"
        if not names:
            return None
        model, seed = names
        fitted = planned.fits_of(dataset)
        if model not in {name for _, name, _ in fitted}:
            base, _, key = model.partition("@")
            if base in layout.models and key and "=" not in key:
                return "models", f"no fit of {base!r} to {dataset!r} sweeps {key!r}; add such a `sweep` to `fits`"
            hint = nearest(model, {name for _, name, _ in fitted})
            return "models", f"no model fitted to {dataset!r} is called {model!r}; {hint}"
        seeds = sorted({one for _, name, one in fitted if name == model})
        if seed not in seeds:
            return "seed", f"{model!r} is fitted to {dataset!r} with seeds {seeds} only"
        return None

    def _activity(self, names: list[Any], networks: Mapping[str, Any], tasks: Mapping[str, Any], where: str) -> None:
        """Refuse the activity of a network, or on a variant of its task, that is not there."""
        network, _, variant = names
        if self._known("network", network, networks, f"{where}.network") and variant:
            task = networks[network].get("task")
            if task in tasks:
                self._known(f"variant of task {task!r}", variant, tasks[task]["variants"], f"{where}.variant")

    def _behavior(self, settings: Mapping[str, Any], task: Mapping[str, Any] | None, where: str) -> None:
        """Refuse channels that the task's body has not, which would be found out after its network is trained."""
        wanted = settings.get("behavior")
        if not wanted or task is None or TASKS[task["kind"]].missing() is not None:
            return
        there = TASKS[task["kind"]](TASKS[task["kind"]].Settings(**task)).behavior_names
        for index, name in enumerate(wanted):
            self._known(f"channel of the body of task {task['kind']!r}", name, there, f"{where}.behavior[{index}]")

    def _known(self, what: str, name: Any, valid: Any, where: str) -> bool:
        if name in valid if isinstance(name, str) else False:
            return True
        found = "missing" if name is None else f"no {what} is called {name!r}"
        self.problems.append(f"{where}: {found}; {nearest(str(name), valid)}")
        return False

    def _good_name(self, name: str, where: str) -> bool:
        if NAME.fullmatch(name):
            return True
        self.problems.append(f"{where}: names are made of letters, digits, _ and -, and begin with a letter")
        return False

    def _validate(self, kind: type[Settings], value: Any, where: str) -> Any:
        """`value` as `kind`, or None with its problems noted."""
        n_problems = len(self.problems)
        for field, registry in getattr(kind, "nested", {}).items():
            inner = value.get(field) if isinstance(value, dict) else None
            if isinstance(inner, dict) and self._known(
                "kind", inner.get("kind"), registry.modules, f"{where}.{field}.kind"
            ):
                self._validate(registry[inner["kind"]].Settings, inner, f"{where}.{field}")
        if len(self.problems) > n_problems:
            return None
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            for problem in error.errors():
                self.problems.append(_explain(kind, problem, where))
            return None

    def _give_up_if_wrong(self) -> None:
        if self.problems:
            lines = "\n".join(f"  {problem}" for problem in dict.fromkeys(self.problems))
            raise ConfigError(f"{self.path}: {len(set(self.problems))} problem(s)\n{lines}")


def _explain(kind: type[BaseModel], problem: Mapping[str, Any], where: str) -> str:
    """One line for one pydantic error: YAML path, what is wrong, what would be right."""
    unknown = problem["type"] == "extra_forbidden"
    parts, fields = _place(kind, problem["loc"][:-1] if unknown else problem["loc"])
    path = where
    for part in [*parts, *(problem["loc"][-1:] if unknown else [])]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if unknown:
        return f"{path}: unknown key; {nearest(str(problem['loc'][-1]), fields)}"
    if problem["type"] == "missing":
        return f"{path}: missing; it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" + ("" if isinstance(problem["input"], dict) else f"; found {problem['input']!r}")


def _place(kind: type[BaseModel], loc: tuple) -> tuple[list[str | int], list[str]]:
    """Place inside `kind` without the tags that tell options of a union apart, and the valid keys there."""
    parts, options = [], [kind]
    for part in loc:
        fields = [option.model_fields[part] for option in options if part in option.model_fields]
        if fields:
            options = [
                one for one in _options(fields[0].annotation) if isinstance(one, type) and issubclass(one, BaseModel)
            ]
        elif tagged := [one for one in options if part in get_args(_kind_of(one))]:
            options = tagged
            continue
        parts.append(part)
    return parts, list(options[0].model_fields) if options else []


def _kind_of(settings: type[BaseModel]) -> Any:
    """Annotation of the key `kind`, if there is one."""
    return settings.model_fields["kind"].annotation if "kind" in settings.model_fields else None


def _options(annotation: Any) -> Iterator[Any]:
    """The types that an annotation such as ``list[A] | None`` is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from _options(inner)


def _sessions_of(entries: Mapping[str, dict[str, Any]], name: str) -> list[str]:
    """Sessions that a dataset holds; none if it is one session by itself."""
    for _ in entries:  # a shuffled dataset has the sessions of its source, at whatever remove
        entry = entries.get(name, {})
        if entry.get("kind") != "shuffled":
            return list(entry.get("datasets") or []) if entry.get("kind") == "sessions" else []
        name = entry.get("dataset", "")
    return []


def _label(point: Mapping[str, Any]) -> str:
    return "@" + ",".join(f"{key}={value}" for key, value in point.items()) if point else ""


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be a name", key.start_mark)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
