"""Reach to random targets with a two-joint, six-muscle arm, against delays, noise and forces that bump the hand.

The arm is MotorNet's (Codol et al. 2024), which is under the GPL and therefore an optional extra, imported when a task
is built. Settings as in the computation-through-dynamics benchmark (CtDB).
"""

import functools
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from ctdb.errors import TaskError
from ctdb.settings import BinRange, Count, NonNegative, Pair, Positive
from ctdb.tasks import TASKS
from ctdb.tasks.base import Body, NoiseSource, Rollout, Task, TaskSettings, TaskTrials, TrialSettings

GO_LEVEL = 0.15
"""Value of the go input from the go cue on."""
REST = 5.0
"""Output at which a muscle is driven by a half; an untrained network, of outputs near 0, leaves the arm at rest."""
LIMITS = {"shoulder": (0.0, 135.0), "elbow": (0.0, 155.0)}
"""Angles that the joints can have."""
DEGREES = {"shoulder": (30.0, 105.0), "elbow": (30.0, 125.0)}
"""Range of the joint angles that starts and goals are drawn from."""
CONDITIONS = ["reach", "reach, bumped", "catch", "catch, bumped"]


class RandomTargetTrialSettings(TrialSettings):
    """How trials of task `random_target` are drawn; the defaults are those of its training.

    Ranges of bins hold their first number and not their last. Without `go`, the cue comes anywhere from five bins after
    the target on. Half of the bumps begin within `bump_after_go` bins of the go cue, the others within `bump_anywhere`,
    by default until 30 bins before the end; `bump_at` takes the place of both. A bump begins within the trial, but may
    outlast it. `bump_sideways` pushes along x alone.
    """

    n_bins: Count = 300
    catch_fraction: float = Field(0.2, ge=0, le=1)
    target_on: BinRange = [10, 30]
    go: BinRange | None = None
    bump_fraction: float = Field(0.5, ge=0, le=1)
    bump_newtons: Pair = [5.0, 10.0]
    bump_bins: BinRange = [15, 30]
    bump_after_go: Count = 40
    bump_anywhere: BinRange | None = None
    bump_at: BinRange | None = None
    bump_sideways: bool = False
    start_degrees: Pair | None = None
    goal_offset_m: Pair | None = None

    @model_validator(mode="after")
    def _times_fit(self) -> "RandomTargetTrialSettings":
        for name in ("target_on", "go", "bump_bins", "bump_anywhere", "bump_at"):
            span = getattr(self, name)
            if span is not None and span[0] >= span[1]:
                raise ValueError(f"{name} {span} is empty: it holds its first number, and not its last")
        if self.bump_newtons[0] > self.bump_newtons[1] or self.bump_newtons[0] < 0:
            raise ValueError(f"bump_newtons {self.bump_newtons} must be two forces from 0 up, the smaller first")
        if self.bump_bins[0] < 1:
            raise ValueError("bump_bins must be at least 1")
        last_on, first_go = self.target_on[1] - 1, None if self.go is None else self.go[0]
        if first_go is not None and first_go <= last_on:
            raise ValueError(f"go {self.go} may come before the target is on, in bins {self.target_on}")
        needed = last_on + 6 if self.go is None else self.go[1]
        if needed > self.n_bins:
            raise ValueError(f"n_bins {self.n_bins} leaves no bin for a go cue; it needs at least {needed}")
        if self.bump_at is not None and self.bump_at[1] > self.n_bins:
            raise ValueError(f"bump_at {self.bump_at} lies beyond the {self.n_bins} bins of a trial")
        for (joint, (low, high)), angle in zip(LIMITS.items(), self.start_degrees or [], strict=False):
            if not low <= angle <= high:
                raise ValueError(f"start_degrees: the {joint} cannot be at {angle}, only between {low} and {high}")
        if self.bump_fraction and self.bump_at is None:
            end = self.n_bins - 30 if self.bump_anywhere is None else self.bump_anywhere[1]
            if not 0 < end <= self.n_bins:
                raise ValueError(
                    f"n_bins {self.n_bins} is too short for bumps anywhere; take more bins, set `bump_anywhere` within "
                    "them, or set bump_fraction to 0"
                )
        return self


class RandomTargetSimulationSettings(RandomTargetTrialSettings):
    """As for training, with the defaults of the simulation: targets and cues at one time each, no catch trials."""

    n_bins: Count = 155
    catch_fraction: float = Field(0.0, ge=0, le=1)
    target_on: BinRange = [30, 31]
    go: BinRange | None = [70, 71]
    bump_anywhere: BinRange | None = [0, 67]


class RandomTargetSettings(TaskSettings):
    """Settings of task `random_target`: noises are standard deviations, delays are in bins of `bin_s`.

    A delay of 1 bin is none: in each bin the network senses the body as the last bin left it. The loss holds the
    hand to its target in the first ``1 / horizon_epochs`` of a trial's bins in the first epoch, and in as many more in
    every further one; in all bins with 0.
    """

    train: RandomTargetTrialSettings = RandomTargetTrialSettings(seed=0)
    simulate: RandomTargetSimulationSettings = RandomTargetSimulationSettings(seed=100)
    variants: dict[str, RandomTargetSimulationSettings] = {}
    input_noise: NonNegative = 0.04
    vision_noise: NonNegative = 0.005
    proprioception_noise: NonNegative = 0.005
    action_noise: NonNegative = 0.005
    vision_delay: Count = 5
    proprioception_delay: Count = 2
    position_weight: Positive = 1.0
    action_weight: NonNegative = 1.0
    horizon_epochs: int = Field(200, ge=0)
    success_m: Positive = 0.03


class Arm(Body):
    """MotorNet's planar arm with six Hill-type muscles, sensed late and with noise, as a pure function of its state.

    Parameters
    ----------
    settings
        Settings of the task.

    References
    ----------
    Codol, Michaels, Kashefi, Pruszynski & Gribble (2024), MotorNet, eLife 13:RP88591; the arm is that of Nijhof &
    Kouwenhoven (2000), the muscles are MuJoCo's.
    """

    def __init__(self, settings: RandomTargetSettings):
        super().__init__()
        import motornet

        self.settings = settings
        muscle = motornet.muscle.MujocoHillMuscle()
        # The same clip with numbers for bounds: torch 2.13 cannot compile a clamp between a tensor and a number.
        muscle.clip_activation = functools.partial(torch.clamp, min=float(muscle.min_activation), max=1.0)
        self.plant = motornet.effector.RigidTendonArm26(muscle=muscle, timestep=settings.bin_s)

    @property
    def muscles(self) -> list[str]:
        """Names of the muscles."""
        return list(self.plant.muscle_name)

    def fingertip(self, degrees: Float[np.ndarray, "trials 2"]) -> Float[np.ndarray, "trials 2"]:
        """Place of the hand, in metres from the shoulder, at given angles of shoulder and elbow."""
        joint = torch.from_numpy(np.concatenate([np.deg2rad(degrees), np.zeros_like(degrees)], 1))
        return self.plant.joint2cartesian(joint)[:, :2].numpy().astype(np.float32)

    @property
    def reach(self) -> tuple[float, float]:
        """Shortest and longest distance of the hand from the shoulder (m)."""
        elbow = np.array([[0.0, LIMITS["elbow"][1]], [0.0, LIMITS["elbow"][0]]])
        nearest, farthest = np.linalg.norm(self.fingertip(elbow), axis=1)
        return float(nearest), float(farthest)

    def begin(
        self, trials: Mapping[str, Tensor], noise: NoiseSource | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Rest at the trials' start, sensed for as long as the delays reach back."""
        s, force = self.settings, trials["force"]
        n_trials, n_bins, _ = force.shape
        for part in (self.plant, self.plant.skeleton, self.plant.muscle):  # each keeps its device for itself
            part.to(force.device)
            part.to(force.dtype)
        angles = trials["start_angles"]
        self.plant.reset(options={"batch_size": n_trials, "joint_state": torch.cat([angles, 0 * angles], 1)})
        state = {name: self.plant.states[name].to(force.dtype) for name in ("joint", "muscle", "geometry")}
        met = {"force": force}
        for name, n, size in (
            ("vision", 2, s.vision_noise),
            ("proprioception", 12, s.proprioception_noise),
            ("action", 6, s.action_noise),
        ):
            if noise is None or size == 0:
                drawn = force.new_zeros(n_trials, n_bins + 1, n)
            else:
                drawn = size * noise.normal(name, n_bins + 1, n, force)
            # The last row meets the first look; the others the bins.
            met[name], first = drawn[:, :-1], {"vision": drawn[:, -1], "proprioception": drawn[:, -1]}.get(name)
            if first is not None:
                seen = self._sensed(state)[name] + first
                delay = s.vision_delay if name == "vision" else s.proprioception_delay
                state[name] = seen[:, None].repeat(1, delay, 1)
        return state, met

    def observe(self, state: dict[str, Tensor]) -> Tensor:
        """Hand and muscles as they were sensed a delay ago."""
        return torch.cat([state["vision"][:, 0], state["proprioception"][:, 0]], 1)

    def step(self, state: dict[str, Tensor], output: Tensor, now: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move for one bin."""
        plant = self.plant
        action = plant.muscle.clip_activation(activation(output) + now["action"])
        change = plant.ode(action, state, now["force"], torch.zeros_like(now["force"]))
        moved = plant.integration_step(plant.minidt, state_derivative=change, states=state)
        for name, seen in self._sensed(moved).items():
            seen = seen + now[name]
            moved[name] = torch.cat([state[name][:, 1:], seen[:, None]], 1)
        return moved

    def behavior(self, state: dict[str, Tensor]) -> Tensor:
        """Hand position (m) and velocity (m/s), joint angles (rad), and muscle activations."""
        hand = self.plant.joint2cartesian(state["joint"])
        return torch.cat([hand, state["joint"][:, :2], state["muscle"][:, 0]], 1)

    def _sensed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What could be sensed of a state at once: the hand's place; muscle lengths and velocities, normalised."""
        muscle = self.plant.muscle
        lengths = state["muscle"][:, 1] / muscle.l0_ce[:, 0]
        velocities = state["muscle"][:, 2] / muscle.vmax[:, 0]
        return {
            "vision": self.plant.joint2cartesian(state["joint"])[:, :2],
            "proprioception": torch.cat([lengths, velocities], 1),
        }


def activation(output: Tensor) -> Tensor:
    """Muscle drive, between 0 and 1, that a network's output stands for: nearly none for an output of 0."""
    return (output - REST).sigmoid()


@TASKS.register("random_target")
class RandomTarget(Task):
    """Hold still, see a target, wait for the go cue, reach to it and stay there.

    Start and goal are drawn uniformly in joint angles. The target's place is shown from its onset until the go cue; the
    go input is 0.15 from the cue on. In catch trials no cue comes and the hand must stay. In bumped trials a force
    pushes the hand. The network senses the hand and the muscles, late and with noise, and then the task's inputs, and
    its outputs drive the muscles, through a logistic function of the output minus 5. A trial is a success if it ends
    within `success_m` of where the hand should be.

    Repairs of CtDB: delays and noises are kept, but goals are never drawn from wrapped angles, a catch trial shows its
    target to the end, muscles carry MotorNet's names, and the loss of the first epochs is no mean of nothing.
    """

    Settings = RandomTargetSettings
    settings: RandomTargetSettings
    requires = ("motornet",)
    install = (
        "it moves the arm of MotorNet, which is under the GPL, so that ctdb does not require it; "
        "install it with: pip install 'ctdb[motor]'"
    )
    conditions = CONDITIONS

    def __init__(self, settings: RandomTargetSettings):
        super().__init__(settings)
        self.arm = Arm(settings)
        muscles = self.arm.muscles
        self.own_inputs = ["target x", "target y", "go"]
        self.input_names = [
            *("seen x", "seen y"),
            *(f"{name} length" for name in muscles),
            *(f"{name} velocity" for name in muscles),
            *self.own_inputs,
        ]
        self.output_names = [f"drive of {name}" for name in muscles]
        self.behavior_names = [
            *("x", "y", "x velocity", "y velocity", "shoulder angle", "elbow angle"),
            *(f"activation of {name}" for name in muscles),
        ]

    @property
    def true_input_names(self) -> list[str]:
        """The task's inputs, and the force on the hand (N)."""
        return [*self.own_inputs, "force x", "force y"]

    @property
    def target_names(self) -> list[str]:
        """Where the hand should be (m)."""
        return ["x", "y"]

    def body(self) -> Arm:
        """The arm."""
        return self.arm

    def generate(self, drawn: RandomTargetTrialSettings, rng: np.random.Generator) -> TaskTrials:
        """Draw trials: angles, times, bumps, then input noise."""
        n, n_bins = drawn.n_trials, drawn.n_bins
        start, goal = self._places(drawn, rng)
        is_catch = rng.random(n) < drawn.catch_fraction
        target_on = rng.integers(*drawn.target_on, n)
        go = rng.integers(*drawn.go, n) if drawn.go else rng.integers(target_on + 5, n_bins)
        force, is_bumped = self._bumps(drawn, go, rng)

        at = np.arange(n_bins)[None, :]
        cue = np.where(is_catch, n_bins, go)[:, None]
        shown = (at >= target_on[:, None]) & (at < cue)
        started = self.arm.fingertip(start)
        reached = np.where(is_catch[:, None], started, goal)
        inputs_true = np.zeros((n, n_bins, 5), np.float32)
        inputs_true[:, :, :2] = shown[..., None] * goal[:, None]
        inputs_true[:, :, 2] = GO_LEVEL * (at >= cue)
        inputs_true[:, :, 3:] = force
        noise = self.settings.input_noise * rng.standard_normal((n, n_bins, 3), dtype=np.float32)
        targets = np.where((at >= cue)[..., None], reached[:, None], started[:, None]).astype(np.float32)
        return TaskTrials(
            inputs=inputs_true[:, :, :3] + noise,
            inputs_true=inputs_true,
            targets=targets,
            loss_weight=np.ones_like(targets),
            condition=2 * is_catch.astype(np.int64) + is_bumped,
            extra={
                "force": force,
                "start_angles": np.deg2rad(start).astype(np.float32),
                "go_bin": np.where(is_catch, -1, go).astype(np.int64),
            },
        )

    def _places(
        self, drawn: RandomTargetTrialSettings, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "trials 2"], Float[np.ndarray, "trials 2"]]:
        """Angles of the start in degrees, and the goal in metres."""
        low, high = np.array(list(DEGREES.values())).T
        start, goal = low + (high - low) * rng.random((2, drawn.n_trials, 2))
        if drawn.start_degrees is not None:
            start[:] = drawn.start_degrees
        where = self.arm.fingertip(goal)
        if drawn.goal_offset_m is not None:
            where = self.arm.fingertip(start) + np.array(drawn.goal_offset_m, np.float32)
            distance = np.hypot(*where.T)
            nearest, farthest = self.arm.reach
            if not nearest <= distance.min() <= distance.max() <= farthest:
                raise TaskError(
                    f"goal_offset_m {drawn.goal_offset_m} puts goals {distance.min():.3g} to {distance.max():.3g} m "
                    f"from the shoulder, but the hand reaches {nearest:.3g} to {farthest:.3g} m; choose another one, "
                    "or set start_degrees"
                )
        return start, where

    def _bumps(
        self, drawn: RandomTargetTrialSettings, go: Int[np.ndarray, " trials"], rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "trials bins 2"], np.ndarray]:
        """Force on the hand in newtons, and which trials have one."""
        n, n_bins = drawn.n_trials, drawn.n_bins
        is_bumped = rng.random(n) < drawn.bump_fraction
        size, duration = rng.uniform(*drawn.bump_newtons, n), rng.integers(*drawn.bump_bins, n)
        direction = np.pi * rng.integers(0, 2, n) if drawn.bump_sideways else rng.uniform(0, 2 * np.pi, n)
        if drawn.bump_at is not None:
            onset = rng.integers(*drawn.bump_at, n)
        else:
            after_go = rng.random(n) < 0.5
            anywhere = rng.integers(*(drawn.bump_anywhere or [0, max(n_bins - 30, 1)]), n)
            onset = np.where(after_go, rng.integers(go, np.minimum(go + drawn.bump_after_go, n_bins)), anywhere)
        at = np.arange(n_bins)[None, :]
        pushed = (at >= onset[:, None]) & (at < (onset + duration)[:, None]) & is_bumped[:, None]
        vector = size[:, None] * np.stack([np.cos(direction), np.sin(direction)], 1)
        return (pushed[..., None] * vector[:, None]).astype(np.float32), pushed.any(1)

    def loss(self, run: Rollout, trials: Mapping[str, Tensor], epoch: int | None = None) -> Tensor:
        """Mean squared distance of the hand, per axis, plus the mean squared drive of the muscles, both weighted."""
        s, n_bins = self.settings, run.outputs.shape[1]
        horizon = n_bins
        if epoch is not None and s.horizon_epochs:
            horizon = -(-n_bins * min(epoch + 1, s.horizon_epochs) // s.horizon_epochs)
        error = trials["loss_weight"] * (run.behavior[:, :, :2] - trials["targets"]) ** 2
        drive = activation(run.outputs) ** 2
        return s.position_weight * error[:, :horizon].mean() + s.action_weight * drive.mean()

    def success(self, run: Rollout, trials: Mapping[str, Tensor]) -> Float[Tensor, " trials"]:
        """1 if the hand ends within `success_m` of where it should be."""
        distance = (run.behavior[:, -1, :2] - trials["targets"][:, -1]).norm(dim=1)
        return (distance <= self.settings.success_m).to(run.outputs.dtype)

    def chance(self, trials: Mapping[str, Tensor]) -> None:
        """Nothing: the outputs are not the answer."""
