"""The report as one page: what :mod:`ctdb.report.leaderboard` and :mod:`ctdb.report.run` found, and all figures."""

import base64
import gzip
import io
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from itables.utils import read_package_file
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from plotly.offline import get_plotlyjs

from ctdb.figures.published import SEPARATOR
from ctdb.figures.score_table import LABELS
from ctdb.files import write_text
from ctdb.report import leaderboard, run
from ctdb.scores import COLUMNS, table_of

ACROSS = "across data sets"
"""Title of the figures that are of several data sets, or of none."""


class Figure(NamedTuple):
    """A figure as the page shows it.

    `image` is empty, and `missing` says why, where it was not made; `lacks` says what of it is not in the plan.
    """

    name: str
    kind: str
    dataset: str
    task: str
    caption: str
    image: str
    width: int
    height: int
    data: str
    n_rows: int
    space: Mapping[str, Any] | None
    missing: str
    lacks: list[str]


class Group(NamedTuple):
    """The figures of a dataset or, where they are of a network, of its task; last those of several or none."""

    title: str
    figures: list[Figure]


def write(plan: Mapping[str, Any], config: str, config_name: str, published: Path | str | None = None) -> None:
    """Write ``report.html`` among the results of a plan, from what is there; what is not there is told in it.

    Parameters
    ----------
    plan
        Of :func:`ctdb.config.load`.
    config, config_name
        Text and name of the configuration that the plan was made from.
    published
        Table of published numbers beside ours, where there is one.
    """
    write_text(Path(plan["results"]) / "report.html", page(plan, config, config_name, published))


def page(plan: Mapping[str, Any], config: str, config_name: str, published: Path | str | None = None) -> str:
    """Text of the page; see :func:`write`. Equal results give equal text but for times and costs."""
    results = Path(plan["results"])
    file = results / "scores.parquet"
    scores = pd.read_parquet(file) if file.is_file() else table_of([]).astype(COLUMNS)
    long = leaderboard.table(plan, scores)
    board = leaderboard.rows(long)
    figures = [figure_of(plan, name) for name in plan["figures"]]
    interactive = [figure for figure in figures if figure.space is not None]
    cost = run.cost(plan)
    trainings = [*run.networks(plan), *run.fits(plan)]
    environment = Environment(
        loader=PackageLoader("ctdb.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False}
    environment.filters |= {"duration": duration, "number": number, "date": date}
    folder = Path(__file__).parent
    return environment.get_template("report.html.j2").render(
        style=(folder / "report.css").read_text(),
        script=(folder / "report.js").read_text(),
        tables=read_package_file("html/dt_bundle.js"),
        plotly=get_plotlyjs() if interactive else None,
        plan=plan,
        config=config,
        config_name=config_name,
        board=board,
        columns=leaderboard.columns(long),
        best=leaderboard.best(plan, board),
        long=data_uri(long.to_csv(index=False, float_format="%.6g")),
        n_long=len(long),
        n_scores=len(scores),
        n_defined=int((scores["status"] == "ok").sum()),
        n_undefined=int((scores["status"] == "undefined").sum()),
        labels={metric: label.replace("\n", " ") for metric, label in LABELS.items()},
        has_scores=file.is_file(),
        undefined=run.undefined(scores),
        figures=figures,
        groups=grouped(plan, figures),
        interactive=interactive,
        networks=[one for one in trainings if one.what == "network"],
        fits=[one for one in trainings if one.what == "fit"],
        failed=[one for one in trainings if one.status != "ok"],
        warned=[one for one in trainings if one.warnings],
        datasets=run.datasets(plan),
        left_out=run.left_out(plan, config),
        cost=cost,
        total={name: float(sum(row[name] for row in cost)) for name in ("wall_h", "cpu_h", "gpu_h")},
        ended=run.ended(plan),
        versions=run.versions(),
        versions_of_jobs=run.versions_of_jobs(plan),
        commit=run.commit(),
        published=_published(published),
    )


def figure_of(plan: Mapping[str, Any], name: str) -> Figure:
    """A figure of the plan, from its files."""
    settings = plan["figures"][name]["settings"]
    dataset = settings.get("dataset", "") or next(iter(settings.get("datasets", [])), "")
    task = plan["networks"][settings["network"]]["task"] if "network" in settings else ""
    task = leaderboard.task_of(plan, dataset) if dataset in plan["datasets"] else task
    stem = Path(plan["results"]) / "figures" / name
    files = {suffix: stem.with_name(f"{name}.{suffix}") for suffix in ("png", "csv", "txt", "json")}
    known = (name, settings["kind"], dataset, task)
    lacks = list(dict.fromkeys(reason for _, reason in plan["figures"][name]["missing"]))
    if not files["png"].is_file() or not files["csv"].is_file():
        reason = f"figures/{name}.png is not there: logs/figures/{name}.log says why, where its job has run"
        return Figure(*known, "", "", 0, 0, "", 0, None, reason, lacks)
    caption = files["txt"].read_text().strip() if files["txt"].is_file() else ""
    table = files["csv"].read_text()
    space = json.loads(files["json"].read_text()) if files["json"].is_file() else None
    if space is not None and "missing" in space.get("layout", {}).get("meta", {}):
        space = None
    n_rows = len(pd.read_csv(files["csv"], dtype=str))
    return Figure(*known, caption, *picture(files["png"]), data_uri(table), n_rows, space, "", lacks)


def picture(file: Path) -> tuple[str, int, int]:
    """An image as the page holds it, without loss and smaller than PNG, with its width and height in pixels."""
    with Image.open(file) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    small = io.BytesIO()
    flat.save(small, "webp", lossless=True, quality=50, method=4)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}", *flat.size


def data_uri(table: str) -> str:
    """A table in CSV, compressed by gzip, as an address that needs no file."""
    packed = gzip.compress(table.encode(), mtime=0)
    return f"data:application/gzip;base64,{base64.b64encode(packed).decode()}"


def grouped(plan: Mapping[str, Any], figures: list[Figure]) -> list[Group]:
    """Figures by dataset, the first that they name; those of a network with the first dataset of its task."""
    first = {}
    for dataset in plan["datasets"]:
        first.setdefault(leaderboard.task_of(plan, dataset), dataset)
    groups: dict[str, list[Figure]] = {dataset: [] for dataset in plan["datasets"]}
    for figure in figures:
        of_task = first.get(figure.task, figure.task) if figure.task else ACROSS
        groups.setdefault(figure.dataset or of_task, []).append(figure)
    return [Group(title, members) for title, members in groups.items() if members]


class Published(NamedTuple):
    """Published numbers beside ours.

    `columns` tell of each its heading, and whether it holds numbers; a cell of `rows` is what is shown, a list where it
    is opened first, and what it is sorted by. `n_ours` of the numbers are there of ours, and of `n_judged` that have a
    band `n_within` are within it. `differences` are the figures that share what was done differently on purpose, and
    what that was.
    """

    columns: list[tuple[str, bool]]
    rows: list[list[tuple[str | list[str], str | float]]]
    n_ours: int
    n_judged: int
    n_within: int
    differences: list[tuple[str, list[str]]]


def _published(file: Path | str | None) -> Published | None:
    """Published numbers beside ours; None where there are none."""
    if file is None or not Path(file).is_file():
        return None
    table = pd.read_csv(file, dtype={"within": "boolean", "x": "string", "note": "string"})
    if table.empty:
        return None
    words = {True: "yes", False: "no"}
    judged = table["within"].dropna()
    table["within"] = table["within"].map(words, na_action="ignore")
    bounds = table.pop("ours_low"), table.pop("ours_high")
    last = ["settings", "dataset", "model", "spread", "published_n", "source", "note"]
    table = table[[*table.columns.difference(last, sort=False), *last]]
    told = table.pop("differences").fillna("").groupby(table["figure"], sort=False).first()
    differences = [
        (", ".join(figures.index), text.split(SEPARATOR)) for text, figures in told.groupby(told, sort=False) if text
    ]
    kinds = {name: pd.api.types.is_numeric_dtype(table[name]) for name in table}
    rows = []
    for low, high, record in zip(*bounds, table.to_dict("records"), strict=True):
        row = []
        for name, value in record.items():
            known = not pd.isna(value) and value != ""
            if name == "settings" and known:
                row.append((value.split(SEPARATOR), value.count(SEPARATOR) + 1))
                continue
            shown = "–" if not known else f"{value:.4g}".replace("-", "−") if kinds[name] else str(value)
            if name == "ours" and known and low != high:
                shown += f" [{low:.4g}, {high:.4g}]".replace("-", "−")
            row.append((shown, value if known else ""))
        rows.append(row)
    columns = [(name.replace("_", " "), numeric) for name, numeric in kinds.items()]
    return Published(columns, rows, int(table["ours"].notna().sum()), len(judged), int(judged.sum()), differences)


def duration(hours: float) -> str:
    """Hours in the unit in which they are read."""
    seconds = 3600 * hours
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if hours < 1 else f"{hours:.1f} h"


def number(value: float | None, digits: int = 3) -> str:
    """A number in a table, with a true minus; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    return (text if float(text) else text.removeprefix("-")).replace("-", "−")


def date(seconds: float) -> str:
    """A moment in coordinated universal time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
