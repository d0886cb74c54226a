"""Published numbers beside ours, against what is computed by hand."""

import math

import pandas as pd
import pytest
import yaml

from ctdb.figures import FIGURES, published
from ctdb.figures.published import NOTHING, comparison, deviations, facts, reproduction, spelling

CSV = """series,x,metric,value,spread,n,band,at_least,source,note
node,3,rate_r2,0.849,0.004,5,0.02,,run A,
node,8.0,rate_r2,0.880,0.016,5,0.02,,run A,other noise
node,1e-4,rate_r2,0.2,,,,,run A,
lds,,rate_r2,0.24,,1,0.04,,Fig 4,"one seed, their slice"
gru,3,rate_r2,0.28,,1,,0.25,Fig 4,
gru,8,rate_r2,0.28,,1,,0.25,Fig 4,
"""
FACTS = {
    "source": "somebody",
    "differences": ["test trials", "no dropout when scored"],
    "protocol": {
        "task": {"n_bins": 500},
        "tasks": {"8": {"n_bits": 3}, "lds": {"n_bins": 50}},
        "models": {"node": {"training.max_epochs": 500, "field_layers": 6}},
    },
}


@pytest.fixture
def some_kind(tmp_path, monkeypatch):
    (tmp_path / "some_kind.csv").write_text(CSV)
    (tmp_path / "some_kind.yaml").write_text(yaml.safe_dump(FACTS))
    monkeypatch.setattr(published, "FOLDER", tmp_path)


def ours(*rows):
    columns = ["series", "x", "metric", "value"]
    return pd.DataFrame(rows, columns=columns).assign(dataset="nbff", model=lambda table: table["series"] + "_model")


@pytest.fixture
def compared(some_kind):
    rows = [("node", 3, "rate_r2", 0.86), ("node", 3, "rate_r2", 0.84), ("node", 3, "rate_r2", math.nan)]
    rows += [("node", 8, "rate_r2", 0.91), ("node", 0.0001, "rate_r2", 0.5), ("node", 3, "state_r2", 0.1)]
    rows += [("lds", "", "rate_r2", math.nan), ("gru", 3, "rate_r2", 0.9), ("gru", 8, "rate_r2", 0.2)]
    return comparison("some_kind", ours(*rows)).set_index(["series", "x"])


def test_means_differences_and_bands(compared):
    first = compared.loc["node", "3"]
    assert (first["ours"], first["ours_low"], first["ours_high"]) == pytest.approx((0.85, 0.84, 0.86))
    assert first["n"] == 2  # the third failed
    assert first["difference"] == pytest.approx(0.85 - 0.849)
    assert first["within"]
    second = compared.loc["node", "8"]
    assert second["difference"] == pytest.approx(0.91 - 0.88)
    assert not second["within"]
    assert (second["note"], second["source"], second["published_n"]) == ("other noise", "run A", 5)
    assert first["model"] == "node_model"


def test_what_has_no_band_or_is_not_ours_is_neither_within_nor_without(compared):
    assert len(compared) == 6  # nothing but what is published
    assert compared.loc[("node", "0.0001"), "difference"] == pytest.approx(0.3)
    assert compared.loc[("node", "0.0001"), "within"] is pd.NA
    failed = compared.loc["lds", ""]
    assert failed["n"] == 0
    assert math.isnan(failed["ours"])
    assert failed["within"] is pd.NA
    assert failed["model"] == "lds_model"


def test_of_a_bound_only_one_side_counts(compared):
    assert compared.loc[("gru", "3"), "within"]  # far above, which is better
    assert not compared.loc[("gru", "8"), "within"]


def test_with_nothing_of_ours_theirs_are_listed_all_the_same(some_kind):
    table = comparison("some_kind", NOTHING)
    assert table["published"].tolist() == [0.849, 0.88, 0.2, 0.24, 0.28, 0.28]
    assert set(table["n"]) == {0}
    assert table["ours"].isna().all()
    assert table["within"].isna().all()
    assert set(table["model"]) == {""}


def test_equal_numbers_have_one_spelling():
    assert {spelling(one) for one in (8, 8.0, "8", "8.0", "8e0")} == {"8"}
    assert spelling("1e-4") == spelling(0.0001)
    assert (spelling(""), spelling(None), spelling(math.nan), spelling("multitask")) == ("", "", "", "multitask")


def test_settings_that_are_not_the_published_ones_are_told():
    actual = {"training": {"max_epochs": 50}, "field_layers": 6}
    told = deviations({"training.max_epochs": 500, "field_layers": 6, "training.clip": 0.01}, actual)
    assert told == ["training.max_epochs 50, published 500", "training.clip not set, published 0.01"]


def test_the_table_of_all_figures_names_settings_and_differences(compared):
    settings = {"nbff node_model": {"task": {"n_bins": 100}, "model": {"training": {"max_epochs": 500}}}}
    rows = compared.reset_index()
    table = reproduction({"fig": ("some_kind", rows)}, lambda dataset, model: settings.get(f"{dataset} {model}", {}))
    table = table.set_index(["series", "x"])
    assert table.loc[("node", "3"), "settings"] == "n_bins 100, published 500 | field_layers not set, published 6"
    assert table.loc[("node", "8"), "settings"].startswith("n_bins 100, published 500 | n_bits not set, published 3 | ")
    assert table.loc[("lds", ""), "settings"] == ""  # nothing of ours is known
    settings["nbff lds_model"] = {"task": {"n_bins": 100}}
    again = reproduction({"fig": ("some_kind", rows)}, lambda dataset, model: settings.get(f"{dataset} {model}", {}))
    assert "n_bins 100, published 50" in again["settings"].tolist()
    settings = {"nbff ": {"task": {"n_bins": 200}}}  # known of a number that no model has, such as of the truth
    again = reproduction({"fig": ("some_kind", rows)}, lambda dataset, model: settings.get(f"{dataset} {model}", {}))
    assert "n_bins 200, published 500" in again.set_index(["series", "x"]).loc[("node", "8"), "settings"]
    assert set(table["differences"]) == {"test trials | no dropout when scored"}
    assert set(table["figure"]) == {"fig"}


def test_without_such_figures_the_table_has_its_columns():
    assert list(reproduction({}, lambda dataset, model: {}).columns)[:3] == ["figure", "series", "x"]


KINDS = sorted(path.stem for path in published.FOLDER.glob("*.csv"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_each_kind_are_complete(kind):
    table, known = published.published(kind), facts(kind)
    assert FIGURES[kind].reproduction is not None
    assert table["value"].notna().all()
    assert not table.duplicated(published.KEYS).any()
    assert (table["source"] != "").all()
    assert (table["band"].dropna() > 0).all()
    assert set(known) == {"source", "differences", "protocol"}
    assert known["source"]
    assert set(known["protocol"]) <= {"task", "tasks", "dataset", "models"}
    assert set(known["protocol"].get("tasks", {})) <= set(table["series"]) | set(table["x"])
    assert set(known["protocol"].get("models", {})) <= set(table["series"])


def test_a_kind_that_compares_has_its_numbers():
    assert {kind for kind in FIGURES.modules if FIGURES[kind].reproduction is not None} == set(KINDS)
