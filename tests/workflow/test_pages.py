"""Pages of figures: made with their figures, by kinds that have them, and told to the report."""

import pytest

from project import CONFIG, lay_out

PAGES = CONFIG + (
    "  points: {kind: fixed_points, dataset: flip, models: [sae_gru, lds]}\n"
    "  near: {kind: dsa, dataset: flip}\n"
    "  ahead: {kind: forecasts, dataset: flip, models: [sae_gru]}\n"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return lay_out(tmp_path_factory.mktemp("pages") / "project", PAGES)


def test_a_figure_of_fixed_points_is_made_as_a_page_too_and_from_the_dynamics_of_its_systems(project):
    for target in ("figures", "all"):
        outputs = project.outputs_by_rule(target)
        assert outputs["interactive"] == ["results/figures/points.html"]
        assert len(outputs["figure"]) == 7
    planned = project.planned("results/figures/points.html")
    assert {rule: planned[rule] for rule in ("true_dynamics", "fit_dynamics", "fit")} == {"true_dynamics": 1, "fit_dynamics": 2, "fit": 2}  # fmt: skip
    assert not {"figure", "dsa", "gather_scores"} & set(planned)


def test_a_figure_without_a_page_has_none(project):
    done = project.run("--dry-run", "results/figures/near.html")
    assert done.returncode != 0
    assert "MissingRuleException" in done.stdout + done.stderr


def test_a_plan_without_pages_makes_none(tmp_path):
    outputs = lay_out(tmp_path / "project").outputs_by_rule("figures")
    assert "interactive" not in outputs
    assert len(outputs["figure"]) == 4
