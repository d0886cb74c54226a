"""The report and what it turns in three dimensions: what they are made from, and when."""

import pytest

from project import CONFIG, lay_out

MORE = CONFIG + (
    "  points: {kind: fixed_points, dataset: flip, models: [sae_gru, lds]}\n"
    "  near: {kind: dsa, dataset: flip}\n"
    "  ahead: {kind: forecasts, dataset: flip, models: [sae_gru]}\n"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("interactive") / "project", MORE)


def test_figures_of_states_and_of_fixed_points_are_made_for_turning_too(project):
    for target in ("figures", "all"):
        outputs = project.outputs_by_rule(target)
        assert sorted(outputs["interactive"]) == ["results/figures/points.json", "results/figures/states.json"]
        assert len(outputs["figure"]) == 7
    planned = project.planned("results/figures/points.json")
    assert {rule: planned[rule] for rule in ("true_dynamics", "fit_dynamics", "fit")} == {"true_dynamics": 1, "fit_dynamics": 2, "fit": 2}  # fmt: skip
    assert not {"figure", "dsa", "gather_scores"} & set(planned)


def test_another_figure_is_not(project):
    done = project.run("--dry-run", "results/figures/near.json")
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout + done.stderr


def test_the_report_is_made_by_its_name_from_scores_fits_and_all_figures(project):
    planned, everything = project.planned("report"), project.planned()
    assert planned["report"] == 1
    assert planned == everything


def test_a_plan_without_figures_to_turn_makes_none(tmp_path):
    config = CONFIG.replace("  states: {kind: latents, dataset: flip, models: [sae_gru, lds]}\n", "")
    outputs = lay_out(tmp_path / "project", config).outputs_by_rule("figures")
    assert "interactive" not in outputs
    assert len(outputs["figure"]) == 3


def test_a_finished_run_has_its_report(finished):
    text = (finished.folder / "results/report.html").read_text()
    assert "3 of 3 fits went well" in text
    for figure in ("task", "rates", "states", "table"):
        assert f'id="figure-{figure}"' in text
    assert str(finished.folder) not in text
