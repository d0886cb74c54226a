"""The base of every group of settings, and those of training and of dynamics, which no kind owns."""

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Typed, immutable settings: an unknown key or a wrong type is an error, never a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)


T = TypeVar("T")
NonEmpty = Annotated[list[T], Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
BinRange = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
"""Whole numbers from the first to one below the second."""
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class PlateauSettings(Settings):
    """Lower the learning rate when the valid loss stops falling."""

    factor: float = Field(0.5, gt=0, lt=1)
    patience: Count = 10
    minimum: NonNegative = 1e-5


class TrainingSettings(Settings):
    """Settings of one training run: Adam, gradients clipped by norm, stopped early on the valid loss.

    `backend` runs the recurrent loops: see :mod:`ctdb.recurrent.backends`.

    Weight decay is Adam's (an L2 penalty on the loss), as in CtDB, or AdamW's (apart from the gradient), as in
    lfads-torch.
    """

    max_epochs: Count = 500
    batch_size: Count = 256
    learning_rate: Positive = 1e-3
    optimizer: Literal["adam", "adamw"] = "adam"
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    gradient_clip: Positive | None = 1.0
    smoothing: Fraction = 0.0
    burn_in: int = Field(0, ge=0)
    patience: Count | None = None
    plateau: PlateauSettings | None = None
    backend: Literal["auto", "eager", "torch", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _something_to_select(self) -> "TrainingSettings":
        if self.burn_in >= self.max_epochs:
            raise ValueError(f"burn_in ({self.burn_in}) must be below max_epochs ({self.max_epochs})")
        return self


class FixedPointSettings(Settings):
    """How to look for fixed points, and how near a fit's must be to a true one.

    `input` is the constant input under which they are sought: `zero`, the `mean` of what the network was given, a value
    for each channel, or some channels by name with the others at 0.
    """

    input: Literal["zero", "mean"] | NonEmpty[float] | dict[str, float] = "zero"
    n_starts: Count = 160
    thorough: bool = False
    within: Positive = 0.3
    seed: Seed = 0


class ForecastSettings(Settings):
    """Free runs of `horizon` bins that begin in every `every`-th bin of the test trials."""

    horizon: Count = 20
    every: Count = 20


class LyapunovSettings(Settings):
    """Lyapunov exponents of free runs under the constant input of the fixed points."""

    n_trajectories: Count = 8
    transient: int = Field(100, ge=0)
    n_bins: int = Field(300, ge=10)
    n_exponents: Count = 10


class DsaSettings(Settings):
    """Distances between all systems of a dataset, from the leading principal components of their states.

    `metric` compares eigenvalues (`wasserstein`), operators (`angular`), or driven systems (`input`: InputDSA).
    Number of delays and rank are chosen where they are not given.
    """

    metric: Literal["wasserstein", "angular", "input"] = "wasserstein"
    components: Count = 10
    n_delays: Count | None = None
    rank: Count | None = None
    n_null: Count = 20
    seed: Seed = 0


class DynamicsSettings(Settings):
    """What is done with the dynamics behind a dataset and of all fits to it; null leaves an analysis out."""

    fixed_points: FixedPointSettings = FixedPointSettings()
    forecast: ForecastSettings | None = ForecastSettings()
    lyapunov: LyapunovSettings | None = LyapunovSettings()
    dsa: DsaSettings | None = DsaSettings()


DYNAMICS_SCORES = (
    "fixed_point_recall",
    "fixed_point_precision",
    "fixed_point_distance",
    "fixed_point_stability",
    "fixed_point_index",
    "fixed_point_time_constants",
    "fixed_point_edges",
    "flow_field_r2",
    "forecast_skill",
    "lyapunov_max",
    "kaplan_yorke_dimension",
    "dsa_similarity",
)
"""Scores of the dynamics, in the table beside those of :data:`ctdb.metrics.METRICS`."""
