"""Learning curves: what the history holds is drawn, whatever single epochs leap to."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from ctdb.figures import FIGURES
from ctdb.figures.base import make
from ctdb.figures.planned import Files, Planned

FIGURE = FIGURES["learning_curve"]


def write_history(path, valid):
    n = len(valid)
    table = {"epoch": range(n), "train_loss": np.linspace(2, 1, n), "valid_loss": valid, "learning_rate": [1e-3] * n}
    pd.DataFrame(table | {"gradient_norm": 1.0}).to_csv(path, index=False)
    return path


@pytest.fixture
def settings():
    return FIGURE.Settings(kind="learning_curve", dataset="some", models=["one", "other"], seed=3)


def test_the_table_is_the_history_and_the_lowest_valid_loss_is_marked(settings, tmp_path):
    leaps = np.r_[2.0, 1e6, np.linspace(1.9, 1.5, 60), np.linspace(1.5, 1.8, 40)]
    files = {
        ("history", "some", "one", 3): str(write_history(tmp_path / "one.csv", leaps)),
        ("history", "some", "other", 3): str(write_history(tmp_path / "other.csv", [np.nan, np.nan])),
    }
    assert FIGURE.needs(settings, Planned()) == list(files)
    canvas, table = FIGURE.draw(settings, files)
    one = table[table["model"] == "one"]
    np.testing.assert_allclose(one["valid_loss"], leaps)
    np.testing.assert_allclose(one["train_loss"], np.linspace(2, 1, len(leaps)))
    assert table["model"].value_counts().to_dict() == {"one": len(leaps), "other": 2}
    ax = canvas.axes[0]
    marks = [line for line in ax.lines if line.get_label() == "lowest valid loss"]
    assert marks[0].get_xydata().tolist() == [[61.0, 1.5]]
    assert ax.get_ylim()[1] < 3  # not what one epoch leapt to
    assert ax.get_ylim()[0] < 1
    plt.close(canvas)


def test_equal_histories_give_equal_bytes(settings, tmp_path):
    files = {
        ("history", "some", name, 3): str(write_history(tmp_path / f"{name}.csv", [2.0, 1.0, 1.5]))
        for name in settings.models
    }
    for out in ("a", "b"):
        make(FIGURE, settings, Files(files), tmp_path / out)
    for suffix in ("pdf", "png", "csv"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
