"""Losses over the training of some fits: whether it had come to an end, and where the best epoch was."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure as Canvas

from ctdb.figures import FIGURES
from ctdb.figures.base import WIDTH, Figure, FigureSettings
from ctdb.figures.planned import Need, Planned
from ctdb.settings import NonEmpty, Seed


class LearningCurveSettings(FigureSettings):
    """Settings of figure `learning_curve`."""

    dataset: str
    models: NonEmpty[str]
    seed: Seed = 0


@FIGURES.register("learning_curve")
class LearningCurve(Figure):
    """Train and valid loss of each epoch, the best epoch marked; below them the learning rate.

    Both losses are what the training minimised, penalties included, on the trials that train and those that select.
    """

    Settings = LearningCurveSettings

    @staticmethod
    def needs(settings: LearningCurveSettings, planned: Planned) -> list[Need]:
        """Histories of the fits."""
        return [("history", settings.dataset, model, settings.seed) for model in settings.models]

    @staticmethod
    def draw(settings: LearningCurveSettings, files: Mapping[Need, str]) -> tuple[Canvas, pd.DataFrame]:
        """Draw one column per fit."""
        canvas, panels = plt.subplots(
            2,
            len(settings.models),
            figsize=(max(WIDTH / 2, min(WIDTH, 2.4 * len(settings.models))), 2.8),
            height_ratios=(3, 1),
            sharex="col",
            squeeze=False,
            layout="constrained",
        )
        tables = []
        for model, (losses, rate) in zip(settings.models, panels.T, strict=True):
            history = pd.read_csv(files["history", settings.dataset, model, settings.seed])
            tables.append(history[["epoch", "train_loss", "valid_loss", "learning_rate"]].assign(model=model))
            losses.plot(history["epoch"], history["train_loss"], color="0.55", label="train")
            losses.plot(history["epoch"], history["valid_loss"], color="C0", label="valid")
            if history["valid_loss"].notna().any():
                best = history.loc[history["valid_loss"].idxmin()]
                losses.plot(best["epoch"], best["valid_loss"], "o", color="C1", ms=3, label="lowest valid loss")
            losses.set_ylim(*_limits(history))
            losses.set_title(model)
            rate.semilogy(history["epoch"], history["learning_rate"], color="0.3")
            rate.set_xlabel("epoch")
        panels[0, 0].set_ylabel("loss")
        panels[1, 0].set_ylabel("learning rate")
        panels[0, -1].legend()
        canvas.suptitle(f"{settings.dataset}: training with seed {settings.seed}", x=0.02, ha="left")
        return canvas, pd.concat(tables, ignore_index=True)[
            ["model", "epoch", "train_loss", "valid_loss", "learning_rate"]
        ]


def _limits(history: pd.DataFrame) -> tuple[float, float]:
    """Of the losses, without what single epochs leap to."""
    losses = history[["train_loss", "valid_loss"]].to_numpy()
    losses = losses[np.isfinite(losses)]
    if not losses.size:
        return 0.0, 1.0
    low, high = losses.min(), np.quantile(losses, 0.98)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
