"""What is left of a plan where the file of an optional dataset is absent: no dataset or fit made from it.

Figures stay, and know what they lack.
"""

import pytest

from ctdb.errors import ConfigError
from ctdb.workflow import plan

CONFIG = """
datasets:
  flow: {kind: lorenz}
  hand: {kind: reaching, path: hand.h5, optional: true, n_bins: 5}
  wave: {kind: continuous, path: wave.h5, optional: true, window_bins: 5, block_bins: 10}
  control: {kind: shuffled, dataset: hand, shuffle: behavior}
  twice: {kind: shuffled, dataset: control, shuffle: neurons}
  both: {kind: sessions, datasets: [flow, hand]}
  kept: {kind: sessions, datasets: [flow]}
models:
  lfads: {kind: lfads, readin: {kind: linear}}
  of_hand: {kind: lfads, initial_fit: {dataset: hand, model: lfads}}
  of_that: {kind: lfads, initial_fit: {dataset: flow, model: of_hand}}
  of_flow: {kind: lfads, initial_fit: {dataset: flow, model: lfads}}
fits:
  - {datasets: [flow, hand, wave, control, twice, both, kept], models: [lfads]}
  - {datasets: [flow], models: [of_hand, of_that, of_flow]}
  - {datasets: [hand], models: [of_flow]}
figures:
  flow: {kind: raster, dataset: flow, models: [lfads, of_flow]}
  begun: {kind: raster, dataset: flow, models: [lfads, of_that]}
  hand: {kind: raster, dataset: hand, models: [lfads]}
  inputs: {kind: controls, dataset: both, models: [lfads], session: flow}
  table: {kind: score_table, dataset: twice}
  scores: {kind: score_table, dataset: flow}
"""


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Plan a run in a folder that has the given files; by default the configuration above."""
    monkeypatch.chdir(tmp_path)

    def run(*files, config=CONFIG):
        for name in ("hand.h5", "wave.h5"):
            (tmp_path / name).unlink(missing_ok=True)
        for name in files:
            (tmp_path / name).write_text("")
        (tmp_path / "config.yaml").write_text(config)
        return plan(["config.yaml"], {}, "unused.yaml")

    return run


def dict_of(missing):
    return {tuple(need): reason for need, reason in missing}


def lacking(made):
    """Of each figure, the fits to `flow` and other data sets that it lacks."""
    left = {name for name, _ in fits_of(made)}
    for figure in made["figures"].values():
        assert all(need[1] in left for need in figure["needs"])
    return {
        name: {need[2] if need[1] == "flow" else need[1] for need, _ in figure["missing"]}
        for name, figure in made["figures"].items()
    }


def fits_of(made):
    return {(fit["dataset"], fit["model"]) for fit in made["fits"]}


def test_with_all_files_nothing_is_left_out(planned, capsys):
    made = planned("hand.h5", "wave.h5")
    assert len(made["datasets"]) == 7
    assert len(made["fits"]) == 11
    assert len(made["figures"]) == 6
    assert capsys.readouterr().err == ""


def test_an_absent_file_takes_with_it_all_that_is_made_from_it_at_whatever_remove(planned, capsys):
    made = planned("wave.h5")
    assert set(made["datasets"]) == {"flow", "wave", "kept"}
    assert fits_of(made) == {("flow", "lfads"), ("wave", "lfads"), ("kept", "lfads"), ("flow", "of_flow")}
    assert lacking(made) == {
        "flow": set(),
        "scores": {"of_hand", "of_that"},
        "begun": {"of_that"},
        "hand": {"hand"},
        "inputs": {"both"},
        "table": {"twice"},
    }
    of_that = next(reason for need, reason in made["figures"]["begun"]["missing"])
    assert of_that == "the fit of 'of_that' to 'flow' with seed 0, which begins with one that is left out"
    assert "dataset 'hand', whose file hand.h5 is not there" in dict_of(made["figures"]["hand"]["missing"]).values()
    told = capsys.readouterr().err
    assert "dataset 'hand' is left out: there is no file hand.h5 (set CTDB_DATA to its folder)" in told
    assert "'wave'" not in told


def test_an_absent_file_that_little_is_made_from_takes_little(planned):
    made = planned("hand.h5")
    assert set(made["datasets"]) == {"flow", "hand", "control", "twice", "both", "kept"}
    assert fits_of(made) == fits_of(planned("hand.h5", "wave.h5")) - {("wave", "lfads")}
    assert len(made["figures"]) == 6


def test_an_absent_file_that_is_not_optional_is_refused_with_its_key(planned):
    needed = CONFIG.replace("path: hand.h5, optional: true", "path: hand.h5")
    with pytest.raises(ConfigError, match=r"datasets\.hand\.path: there is no file hand\.h5; correct the path, or set"):
        planned("wave.h5", config=needed)


def test_a_plan_without_fits_is_refused(planned):
    start, end = CONFIG.index("fits:"), CONFIG.index("figures:")
    bare = CONFIG[:start] + "fits:\n  - {datasets: [hand, both], models: [lfads]}\n" + CONFIG[end:]
    bare = bare[: bare.index("figures:")].replace("  of_", "  # of_")
    assert fits_of(planned("hand.h5", config=bare)) == {("hand", "lfads"), ("both", "lfads")}
    with pytest.raises(ConfigError, match="nothing is left to fit: the file of every dataset of `fits` is absent"):
        planned(config=bare)
