"""What the docs tell a user to write works as it stands there."""

import re
from pathlib import Path

import pandas as pd

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_a_model_and_a_metric_of_one_file_each_run_without_any_other_change(copy):
    model, metric = blocks("extending.md")
    (copy.folder / "src/ctdb/models/my_model.py").write_text(model)
    assert copy.planned() == {}
    copy.edit("config.yaml", "fits:", "  mine: {kind: my_model, width: 3, training: {max_epochs: 2}}\nfits:")
    copy.edit("config.yaml", "models: [sae_gru, lds], seeds", "models: [sae_gru, lds, mine], seeds")
    planned = copy.planned()
    assert planned["fit"] == planned["score_fit"] == 1
    assert "train_network" not in planned

    (copy.folder / "src/ctdb/metrics/rate_mse.py").write_text(metric)
    planned = copy.planned()
    assert planned["fit"] == 1
    assert planned["score_fit"] == 4
    done = copy.run()
    assert done.returncode == 0, done.stdout + done.stderr
    scores = pd.read_parquet(copy.folder / "results/scores.parquet")
    assert {"sae_gru", "lds", "mine"} <= set(scores[scores["metric"] == "rate_mse"]["model"])
    rows = scores[(scores["model"] == "mine") & (scores["metric"] == "rate_mse")]
    assert (rows["value"] > 0).all()
    assert (scores[(scores["role"] == "ceiling") & (scores["metric"] == "rate_mse")]["value"] == 0).all()
    (row,) = scores[(scores["model"] == "mine") & (scores["metric"] == "flow_field_r2")].itertuples()
    assert (row.status, row.reason) == ("undefined", "my_model has no dynamics")


def test_the_dataset_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("datasets.md")
    exec(compile(block, "datasets.md", "exec"), {})
    assert (tmp_path / "mine.h5").exists()


def test_the_readme_s_python_example_runs(finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    readme = (DOCS.parent / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    block = block.replace("results/quick/", "results/").replace("nbff_gru", "gru").replace("nbff", "flip")
    names = {}
    import torch

    names |= {"state": torch.zeros(2, 5, dtype=torch.float64), "input": torch.ones(2, 2, dtype=torch.float64)}
    exec(compile(block, "README.md", "exec"), names)
    assert names["inferred"]["rates"].shape == names["dataset"]["test"].recon_data.shape
    assert names["state"].dtype == torch.float64
