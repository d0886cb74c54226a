"""The report of made-up results: its numbers against pandas, what is missing, and that it needs nothing else."""

import base64
import gzip
import io
import itertools
import json
import re
from html.parser import HTMLParser

import made_up_run
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ctdb.report import leaderboard, page, run
from ctdb.report.__main__ import main

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Elements of a page, each with its attributes, the tags it lies in, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, **{f"@{name}": value for name, value in attributes}, "in": [one["tag"] for one in self.open], "text": ""}  # fmt: skip
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [one for one in self.elements if one["tag"] == tag and all(one.get(f"@{name}") == value for name, value in attributes.items())]  # fmt: skip

    def rows(self, caption):
        """Cells of the table of a caption, by row."""
        start = next(
            index for index, one in enumerate(self.elements) if one["tag"] == "caption" and caption in one["text"]
        )
        found = []
        for one in self.elements[start + 1 :]:
            if one["tag"] == "caption":
                break
            if one["tag"] == "tr":
                found.append([])
            if one["tag"] in ("td", "th"):
                found[-1].append(" ".join(one["text"].split()))
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_up_run.make(tmp_path_factory.mktemp("made_up"))


@pytest.fixture(scope="module")
def text(made):
    plan, config = made
    return page.page(plan, config, "config.yaml")


@pytest.fixture(scope="module")
def parsed(text):
    return Page(text)


def test_the_leaderboard_has_mean_and_range_over_seeds_and_counts_those_that_failed(made, parsed):
    plan, _ = made
    scores = made_up_run.scores(plan)
    test = scores[(scores["split"] == "test") & (scores["status"] == "ok")]
    long = leaderboard.table(plan, scores).set_index(["dataset", "model", "metric"])
    for (model, metric), group in test[test["dataset"] == "flip"].groupby(["model", "metric"]):
        row = long.loc[("flip", model, metric)]
        several = len(group) > 1
        assert row["mean"] == pytest.approx(group["value"].mean())
        assert row["low"] == pytest.approx(group["value"].min() if several else group["low"].iloc[0])
        assert row["high"] == pytest.approx(group["value"].max() if several else group["high"].iloc[0])
        assert row["split"] == "test"
    head, *rows = parsed.rows("Every model of every data set")
    assert head[:6] == ["Model", "Data set", "Role", "n of N", "rate R²", "held-in bits/spike"]
    assert [row[:4] for row in rows] == [
        ["ceiling_true_rates", "flip", "ceiling", "–95 % over trials"],
        ["sae_gru", "flip", "fit", "2 of 3lowest and highest of 2 seeds"],
        ["lds", "flip", "fit", "1 of 195 % over trials"],
        ["floor_mean_rate", "flip", "floor", "–95 % over trials"],
        ["sae_gru", "mine", "fit", "0 of 1"],
    ]
    assert rows[1][4:7] == ["0.700 [0.600, 0.800]", "0.250 [0.200, 0.300]", "0.1500 [0.1000, 0.2000]"]
    assert rows[2][4] == "−0.250 [−0.260, −0.230]"
    assert rows[4][4:] == ["–", "–", "–"]


def test_a_score_has_a_line_from_floor_to_ceiling(made):
    plan, _ = made
    rows = {row.model: row for row in leaderboard.rows(leaderboard.table(plan, made_up_run.scores(plan))) if row.cells}
    assert rows["sae_gru"].cells["bits_per_spike_heldin"].share == pytest.approx(0.25 / 0.5)
    assert rows["sae_gru"].cells["poisson_nll"].share == pytest.approx((0.15 - 0.5) / (0.05 - 0.5))
    assert rows["lds"].cells["rate_r2"].share == 0
    assert rows["ceiling_true_rates"].cells["rate_r2"].share == 1
    own_units = made_up_run.scores(plan).replace({"metric": {"rate_r2": "fixed_point_distance"}})
    (row,) = [row for row in leaderboard.rows(leaderboard.table(plan, own_units)) if row.model == "lds"]
    assert np.isnan(row.cells["fixed_point_distance"].share)


def test_the_best_fit_of_a_dataset_stands_between_its_floor_and_ceiling(parsed):
    assert parsed.rows("The fit with the best score")[1:] == [
        ["flip", "sae_gru", "held-in bits/spike", "0.000", "0.250", "0.500", "3 of 4"],
    ]


def test_sessions_are_rows_of_their_own_with_the_seeds_of_their_model(made):
    plan, _ = made
    scores = made_up_run.scores(plan)
    two = pd.concat([scores.assign(session=name) for name in ("monday", "tuesday")], ignore_index=True)
    rows = {row.model: row for row in leaderboard.rows(leaderboard.table(plan, two)) if row.dataset == "flip"}
    assert {name for name, row in rows.items() if row.role == "fit"} == {f"{model} ({day})" for model in ("sae_gru", "lds") for day in ("monday", "tuesday")}  # fmt: skip
    assert (rows["sae_gru (monday)"].n_ok, rows["sae_gru (monday)"].n) == (2, 3)


def test_it_says_how_many_fits_went_well_and_what_was_run(text, parsed):
    lead = " ".join(parsed.all("p", **{"class": "lead"})[0]["text"].split())
    assert lead.startswith("3 of 5 fits went well: 2 models on 2 data sets, 1 of them simulated from networks trained on 1 task (flip).")  # fmt: skip
    assert "30 of 38 scores are defined" in lead
    flip, mine = parsed.rows("Trials of each split")[1:]
    assert flip == ["flip", "simulated", "flip", "24", "8", "7", "5", "2", "16", "20", "activity gru 0"]
    assert mine[:4] == ["mine", "file", "–", "not made"]
    fits = parsed.rows("Fits with their seeds")[1:]
    assert fits[0] == ["sae_gru", "flip", "sae_gru", "0", "ok", "4", "3", "0.5000"]
    assert [row[4] for row in fits] == ["ok", "ok", "diverged", "ok", "missing"]
    (config,) = [one for one in parsed.all("code") if "pre" in one["in"] and "tasks:" in one["text"]]
    assert "results: out  # <made> & up" in config["text"]
    assert "ctdb 9, numpy 8, torch 7" in text


def test_what_it_cost_is_added_up_without_the_report_itself(parsed):
    _, *rows = parsed.rows("By stage, task or data set")
    assert rows == [
        ["fit", "flip", "sae_gru", "2", "3.0 h", "1.5 h", "–", "700"],
        ["train_network", "flip", "gru", "1", "36.0 s", "18.0 s", "–", "100"],
    ]
    assert [page.duration(hours) for hours in (0.0, 59 / 3600, 0.5, 1.0)] == ["0.0 s", "59.0 s", "30.0 min", "1.0 h"]


def test_numbers_are_written_as_they_are_read():
    assert [page.number(value) for value in (0.12349, -0.5, -0.0004, None, float("nan"))] == ["0.123", "−0.500", "0.000", "–", "–"]  # fmt: skip
    assert page.number(1.23456, 4) == "1.2346"


def test_failures_tell_why(parsed):
    rows = parsed.rows("trainings that did not end well")[1:]
    assert rows[0][:4] == ["network gru", "flip", "0", "missing"]
    assert rows[1:] == [
        ["fit sae_gru", "flip", "2", "diverged", "the loss became nan <at once>", "logs/fits/flip/sae_gru/seed2.log"],
        ["fit sae_gru", "mine", "0", "missing", "error: the disk is full & <small>", "logs/fits/mine/sae_gru/seed0.log"],
    ]  # fmt: skip
    assert parsed.rows("scores that cannot be had")[1:] == [["lds", "flip", "no <dynamics>", "2", "forecast_skill"]]
    listed = [one["text"] for one in parsed.all("li") if "section" in one["in"]]
    assert f"fit lds (flip, seed 0): {made_up_run.EVIL}" in listed
    assert any(one.startswith("table: figures/table.png is not there") for one in listed)


def test_nothing_from_a_file_becomes_markup(parsed, text):
    assert "x" not in [one.get("@src") for one in parsed.all("img")]
    assert "onerror=alert(1)>" not in text.replace("onerror=alert(1)&gt;", "")
    captions = [one["text"].strip() for one in parsed.all("figcaption")]
    assert f"Caption of rates. {made_up_run.EVIL}" in captions
    embedded = [one for one in parsed.all("script", type="application/json") if one["@id"] == "space-of-states"]
    assert json.loads(embedded[0]["text"])["layout"]["meta"]["title"] == f"true states in space {made_up_run.EVIL}"


def test_it_asks_for_nothing_but_itself_and_its_own_pdf_files(parsed, text):
    for one in parsed.elements:
        for name in ("@src", "@href", "@srcset", "@data", "@action", "@poster"):
            address = one.get(name)
            assert (
                address is None or address.startswith(("#", "data:")) or re.fullmatch(r"figures/\w+\.pdf", address)
            ), one
    for style in parsed.all("style"):
        assert not re.search(r"@import|url\(", style["text"])
    policy = parsed.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["@content"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert text.count("plotly.js v") == 1
    for link in parsed.all("a"):
        if link["@href"].startswith("#"):
            assert len([one for one in parsed.elements if one.get("@id") == link["@href"][1:]]) == 1, link


def test_a_table_and_a_figure_are_whole(made, parsed):
    plan, _ = made
    figures = {one["@id"]: one for one in parsed.all("article")}
    assert set(figures) == {f"figure-{name}" for name in plan["figures"]}
    links = {one["@download"]: one["@href"] for one in parsed.all("a") if "@download" in one}
    original = made[0]["results"] + "/figures/states"
    kind, content = links["states.csv.gz"].split(",", 1)
    assert kind == "data:application/gzip;base64"
    with open(f"{original}.csv", "rb") as file:
        assert gzip.decompress(base64.b64decode(content)) == file.read()
    image = next(one for one in parsed.all("img") if "states" in one["@alt"])
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(image["@src"].split(",")[1]))).convert("RGB"))
    with Image.open(f"{original}.png") as before:
        on_white = Image.alpha_composite(Image.new("RGBA", before.size, "white"), before).convert("RGB")
        np.testing.assert_allclose(shown.astype(int), np.asarray(on_white).astype(int), atol=1)
        assert (int(image["@width"]), int(image["@height"])) == before.size
    long = pd.read_csv(io.BytesIO(base64.b64decode(links["leaderboard.csv.gz"].split(",", 1)[1])), compression="gzip")
    assert list(long.columns) == leaderboard.COLUMNS
    assert len(long[long["model"] == "sae_gru"]) == 3 + 1


def test_it_can_be_read_without_sight_or_mouse(parsed):
    levels = [int(one["tag"][1]) for one in parsed.elements if re.fullmatch(r"h[1-6]", one["tag"])]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(parsed.all("caption")) == len(parsed.all("table")) > 5
    for head in parsed.all("th"):
        assert head.get("@scope") in ("row", "col")
    for region in (one for one in parsed.all("div") if one.get("@role") == "region"):
        assert region["@tabindex"] == "0"
        assert region["@aria-label"]
    ids = [one["@id"] for one in parsed.elements if "@id" in one]
    assert len(set(ids)) == len(ids)
    for one in parsed.elements:
        assert one.get("@aria-labelledby") is None or one["@aria-labelledby"] in ids
    labelled = {one.get("@for") for one in parsed.all("label")}
    for select in parsed.all("select"):
        assert select["@id"] in labelled or "label" in select["in"]
    assert all(one["@alt"] for one in parsed.all("img"))
    assert parsed.all("html")[0]["@lang"] == "en"
    assert parsed.all("a", **{"class": "skip"})[0]["@href"] == "#main"
    assert len(parsed.all("main")) == 1


def test_published_numbers_stand_beside_ours(made, tmp_path):
    plan, config = made
    head = "figure,series,x,metric,dataset,model,ours,ours_low,ours_high,n,published,spread,published_n,difference,band,within,settings,differences,source,note"
    lines = [
        "near,gru,8,rate_r2,flip,sae_gru,0.91,0.9,0.92,3,0.88,0.01,5,0.03,0.05,True,,shorter <training> | test trials,Someone 2022,",
        "near,gru,16,rate_r2,flip,sae_gru,0.5,0.5,0.5,1,0.88,,,-0.38,0.05,False,epochs 5 | bins 3,shorter <training> | test trials,Someone 2022,a note",
        "near,node,8,rate_r2,,,,,,0,0.7,,,,,,,,Someone 2022,",
    ]
    (tmp_path / "reproduction.csv").write_text("\n".join([head, *lines]) + "\n")
    parsed = Page(page.page(plan, config, "config.yaml", tmp_path / "reproduction.csv"))
    first, *rows = parsed.rows("Published numbers beside ours")
    assert first[:6] == ["figure", "series", "x", "metric", "ours", "n"]
    by_name = [dict(zip(first, row, strict=True)) for row in rows]
    assert [row["ours"] for row in by_name] == ["0.91 [0.9, 0.92]", "0.5", "–"]
    assert [row["difference"] for row in by_name] == ["0.03", "−0.38", "–"]
    assert [row["within"] for row in by_name] == ["yes", "no", "–"]
    assert by_name[1]["settings"].split() == ["2", "not", "as", "published", "epochs", "5", "bins", "3"]
    assert by_name[0]["settings"] == "–"
    assert "differences" not in first
    assert [one["text"] for one in parsed.all("dd") if one["text"] in ("shorter <training>", "test trials")] == [
        "shorter <training>",
        "test trials",
    ]
    said = " ".join(" ".join(one["text"].split()) for one in parsed.all("p"))
    assert "3 published numbers; ours are there for 2. Ours lie within the band of 1 of the 2 that have one" in said  # fmt: skip
    (tmp_path / "reproduction.csv").write_text(head + "\n")
    assert "h-published" not in page.page(plan, config, "config.yaml", tmp_path / "reproduction.csv")


def test_figures_stand_with_the_data_sets_that_they_name_and_others_by_themselves(made):
    plan, _ = made
    plan = plan | {"datasets": {name: plan["datasets"][name] for name in ("mine", "flip")}}  # the first has no task
    network = plan["datasets"]["flip"]["sources"][0][1]
    settings = {
        "one": {"dataset": "flip"},
        "folds": {"datasets": ["flip", "mine"]},
        "task": {"network": network},
        "no_data": {},
        "rows": {"nbff": {"dataset": "flip"}},
    }
    plan["figures"] = {name: {"settings": {"kind": "k"} | own, "missing": []} for name, own in settings.items()}
    groups = page.grouped(plan, [page.figure_of(plan, name) for name in plan["figures"]])
    named = {group.title: [figure.name for figure in group.figures] for group in groups}
    assert named == {"flip": ["one", "folds", "task"], page.ACROSS: ["no_data", "rows"]}


def test_without_any_result_it_says_what_is_missing(made, tmp_path):
    plan, config = made
    empty = plan | {"results": str(tmp_path / "nothing")}
    text = page.page(empty, config, "config.yaml")
    parsed = Page(text)
    lead = " ".join(parsed.all("p", **{"class": "lead"})[0]["text"].split())
    assert lead.startswith("0 of 5 fits went well")
    assert "There are no scores yet" in lead
    assert len(parsed.all("p", **{"class": "missing"})) == len(plan["figures"])
    assert "plotly.js v" not in text
    assert {row[3] for row in parsed.rows("trainings that did not end well")[1:]} == {"missing"}
    assert "No benchmark of a job is among the results." in text


def test_a_figure_that_lacks_a_fit_is_listed_and_one_that_cannot_be_turned_is_not_offered(made, tmp_path):
    plan, config = made
    states = plan["figures"]["states"] | {"missing": [[["fit", "flip", "gone", 0], "a fit of 'gone' to 'flip'"]]}
    other = plan | {"figures": plan["figures"] | {"states": states}}
    listed = [one["text"] for one in Page(page.page(other, config, "config.yaml")).all("li")]
    assert "states: a fit of 'gone' to 'flip'" in listed
    file = tmp_path / "figures/states.json"
    for suffix in ("png", "csv", "txt"):
        target = tmp_path / f"figures/states.{suffix}"
        target.parent.mkdir(exist_ok=True)
        with open(f"{plan['results']}/figures/states.{suffix}", "rb") as source:
            target.write_bytes(source.read())
    file.write_text(json.dumps({"data": [], "layout": {"meta": {"missing": "a fit"}}}))
    assert page.figure_of(plan | {"results": str(tmp_path)}, "states").space is None


def test_datasets_that_were_left_out_are_named(made):
    plan, config = made
    without = plan | {"datasets": {name: one for name, one in plan["datasets"].items() if name != "mine"}}
    assert run.left_out(without, config) == ["mine"]
    assert run.left_out(plan, config) == []


def test_it_is_made_of_what_is_there_from_the_command_line(tmp_path, monkeypatch):
    made_up_run.make(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["config.yaml"]) == "out/report.html"
    assert "3 of 5 fits went well" in " ".join((tmp_path / "out/report.html").read_text().split())


def test_equal_results_give_equal_bytes(made, text):
    plan, config = made
    assert page.page(plan, config, "config.yaml") == text
