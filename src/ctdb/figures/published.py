"""Published numbers beside ours: what they are, how far ours are from them, and what was done differently.

Each kind of figure that has published numbers has two files in the folder `published/`. ``{kind}.csv`` holds one number
per row: `series` (the role that a model plays in the figure), `x` (what was swept, or the task), `metric` (ours that it
is to be compared with), `value`, `spread` (their standard deviation over `n` fits), `band` (half width of the band
within which ours counts as reproduced) or `at_least` (from where on it does), `source` and `note`. ``{kind}.yaml``
holds their `source`, the deliberate `differences` of ours, and the `protocol`: their settings by the names of ours, of
the `task` and `dataset`, of `tasks` by series or x, and of `models` by series.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ctdb.files import read_yaml

FOLDER = Path(__file__).with_name("published")
KEYS = ["series", "x", "metric"]
OURS = ["ours", "ours_low", "ours_high", "n"]
THEIRS = ["published", "spread", "published_n"]
SEPARATOR = " | "
"""Between the settings, and between the differences, of a row of the table."""
NOTHING = pd.DataFrame({"series": "", "x": "", "metric": "", "value": 0.0, "dataset": "", "model": ""}, index=range(0))
"""What :func:`comparison` takes where there is nothing of ours."""
JUDGED = ["difference", "band", "at_least", "within"]
SettingsOf = Callable[[str, str], Mapping[str, Mapping[str, Any]]]
COLUMNS = {
    "series": "string",
    "x": "string",
    "metric": "string",
    "value": "float64",
    "spread": "float64",
    "n": "Int64",
    "band": "float64",
    "at_least": "float64",
    "source": "string",
    "note": "string",
}
STYLE = {"ls": "none", "marker": "D", "mfc": "none", "mec": "black", "mew": 0.7, "ms": 3.5, "zorder": 4}
"""How a published value is drawn."""


def published(kind: str) -> pd.DataFrame:
    """Published numbers of a kind of figure, one per row; `x` is text, and empty where nothing was swept."""
    numbers = {name: [""] for name, dtype in COLUMNS.items() if dtype != "string"}
    table = pd.read_csv(FOLDER / f"{kind}.csv", dtype=COLUMNS, keep_default_na=False, na_values=numbers)
    return table.reindex(columns=list(COLUMNS)).astype(COLUMNS)


def facts(kind: str) -> dict[str, Any]:
    """Citation (`source`), deliberate `differences`, and `protocol` of the published numbers of a kind of figure."""
    return read_yaml(FOLDER / f"{kind}.yaml")


def comparison(kind: str, ours: pd.DataFrame) -> pd.DataFrame:
    """Our numbers beside the published ones.

    Parameters
    ----------
    kind
        Kind of figure.
    ours
        One row per fit: `series`, `x`, `metric`, `value`, which is NaN where the fit failed, and `dataset` and `model`.
        Numbers in `x` are matched by value, whether they are written 8, 8.0 or 1e-4.

    Returns
    -------
    One row per published number: `series`, `x`, `metric`, `dataset`, `model`; the mean of `ours` with `ours_low` and
    `ours_high` over `n` fits that went well (NaN and 0 where there is none); `published`, its `spread` over
    `published_n` fits; the `difference`, ours less theirs; the `band` or bound `at_least` and whether it lies `within`
    it (missing where there is neither, or nothing of ours); `source` and `note`.
    """
    theirs = published(kind).rename(columns={"value": "published", "n": "published_n"})
    own = ours.assign(x=ours["x"].map(spelling), value=ours["value"].astype(float)).dropna(subset="value")
    grouped = own.groupby(KEYS)["value"]
    summary = pd.DataFrame(
        {"ours": grouped.mean(), "ours_low": grouped.min(), "ours_high": grouped.max(), "n": grouped.size()}
    )
    of_which = ours.assign(x=ours["x"].map(spelling)).groupby(KEYS)[["dataset", "model"]].first()
    table = theirs.assign(x=theirs["x"].map(spelling)).merge(summary.reset_index(), how="left", on=KEYS)
    table = table.merge(of_which.reset_index(), how="left", on=KEYS).fillna({"dataset": "", "model": ""})
    table["n"] = table["n"].fillna(0).astype("Int64")
    table["difference"] = table["ours"] - table["published"]
    within = (table["difference"].abs() <= table["band"]).where(
        table["at_least"].isna(), table["ours"] >= table["at_least"]
    )
    known = table["ours"].notna() & (table["band"].notna() | table["at_least"].notna())
    table["within"] = within.astype("boolean").where(known)
    return table[[*KEYS, "dataset", "model", *OURS, *THEIRS, *JUDGED, "source", "note"]]


def spelling(x: object) -> str:
    """One spelling of what was swept: equal numbers are equal texts."""
    if x is None or x is pd.NA or x == "" or (isinstance(x, float) and np.isnan(x)):
        return ""
    try:
        return f"{float(str(x)):g}"
    except ValueError:
        return str(x)


def reproduction(compared: Mapping[str, tuple[str, pd.DataFrame]], settings_of: SettingsOf) -> pd.DataFrame:
    """Table of all published numbers beside ours.

    Parameters
    ----------
    compared
        Figure to its kind and its rows, which :func:`comparison` made.
    settings_of
        Settings behind a data set and a model fitted to it: of the `task`, where it has one, `dataset` and `model`;
        empty where there is no such fit. Those behind the data set alone, of an empty model, are taken then.

    Returns
    -------
    Rows of all figures after one another, with `figure`, with our `settings` that are not the published ones, and with
    the deliberate `differences`.
    """
    parts = []
    for figure, (kind, rows) in compared.items():
        known = facts(kind)
        told = []
        for row in rows.itertuples():
            behind = settings_of(row.dataset, row.model) or settings_of(row.dataset, "")
            told.append(SEPARATOR.join(_deviations(known["protocol"], (row.series, row.x), behind)))
        parts.append(rows.assign(figure=figure, settings=told, differences=SEPARATOR.join(known["differences"])))
    order = ["figure", *KEYS, "dataset", "model", *OURS, *THEIRS, *JUDGED]
    order += ["settings", "differences", "source", "note"]
    return pd.concat(parts, ignore_index=True)[order] if parts else pd.DataFrame(columns=order)


def _deviations(protocol: Mapping[str, Any], of: tuple[str, str], ours: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What is not as published in the settings behind the number of a series and x, as far as there are any."""
    theirs = {part: dict(protocol.get(part, {})) for part in ("task", "dataset")}
    for name in of:
        theirs["task"] |= protocol.get("tasks", {}).get(name, {})
    theirs["model"] = protocol.get("models", {}).get(of[0], {})
    return [text for part, own in ours.items() for text in deviations(theirs[part], own)]


def deviations(protocol: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Settings that are not the published ones.

    Parameters
    ----------
    protocol
        Published settings by dotted name, such as ``training.max_epochs``.
    actual
        Settings of this configuration, nested.

    Returns
    -------
    One phrase per setting, such as ``training.max_epochs 50, published 500``.
    """
    found = []
    for name, theirs in protocol.items():
        ours: Any = actual
        for key in name.split("."):
            ours = ours.get(key) if isinstance(ours, Mapping) else None
        if ours != theirs:
            found.append(f"{name} {'not set' if ours is None else ours}, published {theirs}")
    return found
