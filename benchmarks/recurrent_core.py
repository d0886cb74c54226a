"""Time training steps, posterior sampling and task training against the algorithms of lfads-torch and CtDB.

Run ``python benchmarks/recurrent_core.py``; with ``--write`` its section of ``benchmarks/README.md`` is replaced. The
peers are in ``peers.py``, written from their maths; both sides run in one process, in turn, and a ratio is the median
over rounds of each round's own. Before anything is timed, loss and gradients of both sides are compared on copied
weights with the same masks and noise.
"""

import argparse
import copy
import functools
import gc
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import peers
from common import in_turn, machine, write_section
from ctdb.models.base import Sizes
from ctdb.models.lfads import LFADS, LFADSSettings
from ctdb.models.lfads_torch import load_lfads_torch, to_lfads_torch
from ctdb.networks.base import build
from ctdb.recurrent import Noise, choose, initialise, use_backend
from ctdb.settings import TrainingSettings
from ctdb.training import Batches
from ctdb.training.loop import _LightningModule

TITLE = "## Training steps against lfads-torch and CtDB (`recurrent_core.py`)"
RATE = 0.1
"""Spikes per bin."""


@dataclass(frozen=True)
class Shape:
    """A configuration of a peer: sizes as in its files."""

    source: str
    n_encod: int
    n_recon: int
    t_encod: int
    t_recon: int
    model: dict[str, Any]
    n_ext: int = 0


SHAPES = {
    "maze20": Shape(
        "lfads-torch, MC_Maze at 20 ms",
        *(137, 182, 35, 45),
        {"ic_enc_dim": 64, "ci_enc_dim": 64, "con_dim": 64, "co_dim": 4, "ic_dim": 64, "gen_dim": 200, "fac_dim": 100}
        | {"dropout_rate": 0.3, "cd_rate": 0.3},
    ),
    "maze5": Shape(
        "the same at 5 ms",
        *(137, 182, 140, 180),
        {"ic_enc_dim": 64, "ci_enc_dim": 64, "con_dim": 64, "co_dim": 4, "ic_dim": 64, "gen_dim": 200, "fac_dim": 100}
        | {"dropout_rate": 0.3, "cd_rate": 0.3},
    ),
    "nbff": Shape(
        "CtDB, 3BFF with its inputs",
        *(50, 60, 500, 500),
        {"ic_enc_dim": 128, "ci_enc_dim": 0, "con_dim": 0, "co_dim": 0, "ic_dim": 128, "gen_dim": 128, "fac_dim": 128}
        | {"dropout_rate": 0.05, "cd_rate": 0.2},
        n_ext=3,
    ),
    "nbffinf": Shape(
        "CtDB, 3BFF with inferred inputs",
        *(50, 60, 500, 500),
        {
            "ic_enc_dim": 128,
            "ci_enc_dim": 128,
            "con_dim": 128,
            "co_dim": 3,
            "ic_dim": 128,
            "gen_dim": 128,
            "fac_dim": 20,
        }
        | {"dropout_rate": 0.05, "cd_rate": 0.2},
    ),
}


class Pair:
    """Our model and the peer's, with the same weights, and a batch for both."""

    def __init__(self, shape: Shape, n_trials: int):
        self.shape, self.n_trials, self.steps = shape, n_trials, 0
        scales = {"l2_gen_scale": 1e-4, "l2_con_scale": 1e-4, "kl_ic_scale": 1e-3, "kl_co_scale": 1e-3}
        ramps = {"kl_increase_epoch": 0, "l2_increase_epoch": 0}
        self.settings = LFADSSettings(kind="lfads", kl_normalisation="lfads_torch", **scales, **ramps, **shape.model)
        lengths = {"n_bins": shape.t_encod, "n_recon_bins": shape.t_recon}
        sizes = Sizes(n_heldin=shape.n_encod, n_neurons=shape.n_recon, n_inputs=shape.n_ext, **lengths)
        self.ours = LFADS(self.settings, sizes)
        initialise(self.ours, torch.Generator().manual_seed(0))
        priors = {"ic_prior": self.settings.ic_prior.model_dump(), "co_prior": self.settings.co_prior.model_dump()}
        names = ("n_encod", "n_recon", "t_encod", "t_recon")
        given = {name: getattr(shape, name) for name in names} | {"ext_input_dim": shape.n_ext}
        torch.manual_seed(0)
        self.peer = peers.LfadsTorchPeer(**given, **shape.model, **priors, **scales)
        self.peer_bps = peers.LfadsTorchPeer(**given, **shape.model, **priors, **scales, with_bps=True)
        self._same_weights()
        self.our_optimizer = torch.optim.AdamW(self.ours.parameters(), lr=1e-4, fused=True)
        self.peer_optimizer = peers.lfads_torch_optimizer(self.peer, lr=1e-4)
        self.bps_optimizer = peers.lfads_torch_optimizer(self.peer_bps, lr=1e-4)
        generator = torch.Generator().manual_seed(1)
        counts = torch.poisson(torch.full((n_trials, shape.t_recon, shape.n_recon), RATE), generator=generator)
        ext_input = torch.randn(n_trials, shape.t_recon, shape.n_ext, generator=generator)
        seen = counts[:, : shape.t_encod, : shape.n_encod].contiguous()
        self.peer_batch = (seen, counts, ext_input)
        self.batch = {
            "encod_data": seen.to(torch.uint8),
            "recon_data": counts.to(torch.uint8),
            "ext_input": ext_input,
            "weight": torch.ones(n_trials, shape.t_recon, 1),
            "trial_index": torch.arange(n_trials),
        }

    def _same_weights(self) -> None:
        found = self.peer.state_dict()
        load_lfads_torch(self.ours, found)
        self.peer_bps.load_state_dict(found)

    def our_step(self, backend: str) -> Callable[[], None]:
        """One training step of ours."""

        def step() -> None:
            self.steps += 1
            with use_backend(backend):
                loss, _ = self.ours.loss_and_terms(self.batch, torch.Generator().manual_seed(self.steps))
                self.our_optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.get_total_norm([p.grad for p in self.ours.parameters() if p.grad is not None])
                torch.nn.utils.clip_grads_with_norm_(self.ours.parameters(), 200.0, norm)
                self.our_optimizer.step()

        self.ours.train()
        return step

    def peer_step(self, bps: bool = False) -> Callable[[], None]:
        """One training step of the peer."""
        model, optimizer = (self.peer_bps, self.bps_optimizer) if bps else (self.peer, self.peer_optimizer)
        return lambda: peers.lfads_torch_step(model, optimizer, self.peer_batch)

    def check_equal(self) -> tuple[float, float]:
        """Largest relative differences of loss and gradients, on copied weights with the same masks and noise.

        Ours in single precision, the peer's in double.
        """
        self._same_weights()
        s, generator = self.settings, torch.Generator().manual_seed(7)
        noise, length, like = Noise(generator, self.batch["trial_index"]), self.shape.t_recon, self.peer_batch[1]
        seen, rate = self.peer_batch[0].shape[1:], s.dropout_rate
        injected = {
            "cd_keep": noise.keep("coordinated dropout", *seen, s.cd_rate),
            "encoder_input": noise.keep("encoder input", *seen, rate),
            "ic_summary": noise.keep("ic summary", 1, 2 * s.ic_enc_dim, rate)[:, 0],
            "gen_states": noise.keep("generator states", length, s.gen_dim, rate),
            "ext_input": noise.keep("external input", length, self.shape.n_ext, rate),
            "ic_noise": noise.normal("ic", 1, s.ic_dim, like)[:, 0],
        }
        if s.co_dim:
            injected["con_ci"] = noise.keep("controller input", length, 2 * s.ci_enc_dim, rate)
            injected["con_factors"] = noise.keep("controller factors", length, s.fac_dim, rate)
            injected["gen_init"] = noise.keep("generator start", 1, s.gen_dim, rate)[:, 0]
            injected["co_noise"] = noise.normal("inferred inputs", length, s.co_dim, like)
        injected = {name: value.double() for name, value in injected.items()}
        peer, batch = copy.deepcopy(self.peer).double(), [value.double() for value in self.peer_batch]
        theirs = peer.training_loss(*batch, injected=injected, fresh_kl_sample=False)
        theirs.backward()
        self.ours.train()
        with use_backend("cpu"):
            ours, _ = self.ours.loss_and_terms(self.batch, generator)
        ours.backward()
        # theirs approximates log n! by Stirling's series, and has 0 for n of 1 and less
        counts = batch[1]
        approximate = nn.functional.poisson_nll_loss(torch.zeros_like(counts), counts, full=True, reduction="none") - 1
        offset = (torch.lgamma(counts + 1) - approximate).mean()
        loss = abs(float(((ours - offset) / theirs).detach()) - 1)
        own = {p: p.grad for p in self.ours.parameters()}
        wanted = {name: p.grad for name, p in peer.named_parameters() if p.grad is not None and p.numel()}
        with _gradients_as_weights(self.ours, own):
            mapped = to_lfads_torch(self.ours)
        worst = max(
            float((mapped[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-30))
            for name, grad in wanted.items()
        )
        self.ours.zero_grad()
        return loss, worst

    def flops(self) -> float:
        """Multiplications and additions of all matrix products of a step, without gradients of the encoders' input."""
        s, shape = self.settings, self.shape
        directions = [s.ic_enc_dim] * 2 + [s.ci_enc_dim] * 2
        encoders = sum(shape.t_encod * 3 * n * (2 * shape.n_encod + 3 * n) for n in directions)
        n_in = s.co_dim + shape.n_ext
        decoder = 3 * s.gen_dim * (n_in + s.gen_dim) + s.gen_dim * s.fac_dim
        if s.co_dim:
            decoder += 3 * s.con_dim * (2 * s.ci_enc_dim + s.fac_dim + s.con_dim) + 2 * s.con_dim * s.co_dim
        readout = s.fac_dim * shape.n_recon
        return 2.0 * self.n_trials * (encoders + 3 * shape.t_recon * (decoder + readout))


class _gradients_as_weights:  # noqa: N801
    """Within it, the parameters hold their gradients."""

    def __init__(self, model: nn.Module, gradients: dict[nn.Parameter, Tensor | None]):
        self.model, self.gradients = model, gradients

    def __enter__(self) -> None:
        self.before = {p: p.data for p in self.model.parameters()}
        for p, grad in self.gradients.items():
            p.data = torch.zeros_like(p) if grad is None else grad

    def __exit__(self, *_: object) -> None:
        for p, data in self.before.items():
            p.data = data


def sgemm_limit() -> float:
    """Floating-point operations per second of a large single-precision product."""
    a, b = (torch.randn(1024, 1024) for _ in range(2))
    out = torch.empty(1024, 1024)
    best = min(in_turn({"mm": lambda: torch.mm(a, b, out=out)}, 15)["mm"])
    return 2 * 1024**3 / best


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of how many times faster `fast` is."""
    return statistics.median(one / other for one, other in zip(seconds[slow], seconds[fast], strict=True))


def training_table(rounds: int, names: list[str], batches: list[int], threads: list[int]) -> list[str]:
    """Rows of training steps."""
    rows = [
        "| shape | trials | threads | lfads-torch ms | ours ms | **ratio** | with its bps metrics | `medium` | "
        "`torch` backend | share of the sgemm limit, theirs / ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        for n_trials in batches:
            pair = Pair(SHAPES[name], n_trials)
            for n_threads in threads:
                torch.set_num_threads(n_threads)
                sides = {"peer": pair.peer_step(), "cpu": pair.our_step("cpu")}
                sides |= {"bps": pair.peer_step(bps=True), "torch": pair.our_step("torch")}
                seconds = in_turn(sides, rounds, least=0.2)
                torch.set_float32_matmul_precision("medium")
                medium = in_turn({"peer": sides["peer"], "cpu": sides["cpu"]}, max(2, rounds // 2), least=0.2)
                torch.set_float32_matmul_precision("highest")
                limit = sgemm_limit()
                shares = [pair.flops() / statistics.median(seconds[side]) / limit for side in ("peer", "cpu")]
                times = [1000 * statistics.median(seconds[side]) for side in ("peer", "cpu")]
                rows.append(
                    f"| {name} | {n_trials} | {n_threads} | {times[0]:.0f} | {times[1]:.1f} | "
                    f"**{ratio(seconds, 'peer', 'cpu'):.2f}** | {ratio(seconds, 'bps', 'cpu'):.2f} | "
                    f"{ratio(medium, 'peer', 'cpu'):.2f} | {ratio(seconds, 'peer', 'torch'):.2f} | "
                    f"{shares[0]:.0%} / {shares[1]:.0%} |"
                )
                print(rows[-1], flush=True)
    return rows


def equality_rows(names: list[str]) -> list[str]:
    """How far both sides are apart."""
    rows = ["| shape | loss | worst gradient |", "|---|---|---|"]
    for name in names:
        loss, worst = Pair(SHAPES[name], 70).check_equal()
        if not (loss < 1e-5 and worst < 1e-5):
            raise SystemExit(f"{name}: loss differs by {loss:.1e}, a gradient by {worst:.1e}; nothing is timed")
        rows.append(f"| {name}, 70 trials | {loss:.0e} | {worst:.0e} |")
    return rows


def _with_threads(n_threads: int, step: Callable[[], None]) -> None:
    torch.set_num_threads(n_threads)
    step()


def thread_rows(rounds: int) -> list[str]:
    """How two threads scale."""
    rows = ["| shape | trials | one thread / two threads |", "|---|---|---|"]
    for name, n_trials in (("maze20", 64), ("maze20", 256), ("nbff", 256)):
        pair = Pair(SHAPES[name], n_trials)
        step = pair.our_step("cpu")

        one, two = (functools.partial(_with_threads, n, step) for n in (1, 2))
        seconds = in_turn({"one": one, "two": two}, 3 * rounds)
        rows.append(f"| {name} | {n_trials} | {ratio(seconds, 'one', 'two'):.2f} |")
        print(rows[-1], flush=True)
    torch.set_num_threads(1)
    return rows


class TaskPair:
    """Our NoisyGRU of 128 units and the peer's on the 3-bit flip-flop, 500 bins."""

    def __init__(self, n_trials: int):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(n_trials, 500, 3, generator=generator)
        self.targets = (torch.rand(n_trials, 500, 3, generator=generator) < 0.5).float().cummax(1).values
        self.weight, self.trials, self.steps = torch.ones(n_trials, 500, 3), torch.arange(n_trials), 0
        torch.manual_seed(0)
        self.peer = peers.CtdTaskPeer()
        self.peer_optimizer = peers.ctd_task_optimizer(self.peer)
        self.network = build({"kind": "noisy_gru", "hidden_size": 128, "state_noise": 0.01}, 3, 3, seed=0)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3, weight_decay=1e-8, fused=True)

    def peer_step(self) -> None:
        """One training step of the peer."""
        peers.ctd_task_step(self.peer, self.peer_optimizer, (self.inputs, self.targets))

    def our_step(self, backend: str) -> None:
        """One training step of ours."""
        self.steps += 1
        noise = Noise(torch.Generator().manual_seed(self.steps), self.trials)
        with use_backend(backend):
            _, outputs = self.network.run(self.inputs, noise, states=False)
            loss = (self.weight * (outputs - self.targets) ** 2).mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()


def task_rows(rounds: int, batches: list[int]) -> list[str]:
    """Task training."""
    rows = ["| trials | CtDB ms | ours ms | **ratio** | `torch` backend | `medium` |", "|---|---|---|---|---|---|"]
    for n_trials in batches:
        pair = TaskPair(n_trials)
        sides = {"peer": pair.peer_step, "cpu": functools.partial(pair.our_step, "cpu")}
        seconds = in_turn(sides | {"torch": functools.partial(pair.our_step, "torch")}, rounds, least=0.2)
        torch.set_float32_matmul_precision("medium")
        medium = in_turn(sides, max(2, rounds // 2), least=0.2)
        torch.set_float32_matmul_precision("highest")
        times = [1000 * statistics.median(seconds[side]) for side in ("peer", "cpu")]
        rows.append(
            f"| {n_trials} | {times[0]:.0f} | {times[1]:.0f} | **{ratio(seconds, 'peer', 'cpu'):.2f}** | "
            f"{ratio(seconds, 'peer', 'torch'):.2f} | {ratio(medium, 'peer', 'cpu'):.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def posterior_rows(rounds: int, names: list[str]) -> list[str]:
    """Posterior means over 50 samples of 64 trials."""
    rows = ["| shape | lfads-torch ms | ours ms | **ratio** |", "|---|---|---|---|"]
    for name in names:
        pair = Pair(SHAPES[name], 64)
        arrays = {"encod_data": pair.peer_batch[0], "ext_input": pair.peer_batch[2]}
        pair.ours.eval()
        peer = functools.partial(peers.posterior_sample, pair.peer, pair.peer_batch, 50)
        sides = {"peer": peer, "cpu": functools.partial(pair.ours.infer, arrays)}
        seconds = in_turn(sides, max(2, rounds // 2))
        times = [1000 * statistics.median(seconds[side]) for side in sides]
        rows.append(f"| {name} | {times[0]:.0f} | {times[1]:.0f} | **{ratio(seconds, 'peer', 'cpu'):.2f}** |")
        print(rows[-1], flush=True)
    return rows


class _Trivial(nn.Module):
    """As many parameters and terms as LFADS, and next to no arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(64)) for _ in range(37))

    def loss_and_terms(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of all weights, and four terms."""
        loss = torch.stack([weight.sum() for weight in self.weights]).sum()
        return loss, dict.fromkeys(("nll", "kl_ic", "kl_co", "l2"), loss)


def overhead(n_steps: int = 400) -> float:
    """Seconds that Lightning, logging and batches add to a step, on a module that computes next to nothing."""
    shape = SHAPES["maze20"]
    tensors = {
        "encod_data": torch.zeros(64 * 20, shape.t_encod, shape.n_encod, dtype=torch.uint8),
        "recon_data": torch.zeros(64 * 20, shape.t_recon, shape.n_recon, dtype=torch.uint8),
        "weight": torch.ones(64 * 20, shape.t_recon, 1),
    }
    settings = TrainingSettings(max_epochs=n_steps // 20 + 1, batch_size=64, gradient_clip=200.0, optimizer="adamw")
    module, marks = _Trivial(), []

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            marks.append(time.perf_counter())

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=settings.max_epochs,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(_LightningModule(module, settings, 0), Batches(tensors, 64, shuffle_seed=0))
    within = [b - a for a, b in itertools.pairwise(marks)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def bare() -> None:
        loss, _ = module.loss_and_terms({}, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 200.0)
        optimizer.step()

    alone = in_turn({"bare": bare}, 200)["bare"]
    return statistics.median(within) - statistics.median(alone)


def scaling_rows(rounds: int) -> list[str]:
    """Time and memory of a step as sizes grow, each against maze20 with 64 trials."""
    base = SHAPES["maze20"]
    variants: dict[str, tuple[Shape, int]] = {"maze20, 64 trials": (base, 64)}
    for n in (274, 548):
        shape = Shape(base.source, n, n + 45, base.t_encod, base.t_recon, base.model)
        variants[f"{n} neurons seen"] = (shape, 64)
    for n in (70, 140):
        shape = Shape(base.source, base.n_encod, base.n_recon, n, n + 10, base.model)
        variants[f"{n} bins seen"] = (shape, 64)
    for n in (100, 400):
        variants[f"generator of {n}"] = (Shape(base.source, 137, 182, 35, 45, base.model | {"gen_dim": n}), 64)
    for n in (16, 128, 256, 512):
        variants[f"{n} trials"] = (base, n)
    rows = [
        "| what differs | ours ms | time | matrix operations | memory MiB, ours / lfads-torch |",
        "|---|---|---|---|---|",
    ]
    first = None
    for label, (shape, n_trials) in variants.items():
        pair = Pair(shape, n_trials)
        now = statistics.median(in_turn({"cpu": pair.our_step("cpu")}, 2 * rounds)["cpu"])
        first = first or (now, pair.flops())
        memory = " / ".join(f"{_memory(shape, n_trials, side):.0f}" for side in ("ours", "peer"))
        rows.append(f"| {label} | {1000 * now:.1f} | {now / first[0]:.2f} | {pair.flops() / first[1]:.2f} | {memory} |")
        print(rows[-1], flush=True)
    return rows


def _memory(shape: Shape, n_trials: int, side: str) -> float:
    """MiB by which the largest size of a fresh process grows over three steps."""
    code = (
        "import re, sys, torch; sys.argv = ['']; torch.set_num_threads(1)\n"
        "import recurrent_core as b\n"
        f"shape = b.Shape('', {shape.n_encod}, {shape.n_recon}, {shape.t_encod}, {shape.t_recon}, {shape.model!r})\n"
        f"pair = b.Pair(shape, {n_trials})\n"
        "size = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1024\n"
        f"step = pair.our_step('cpu') if {side!r} == 'ours' else pair.peer_step()\n"
        "before = size(); step(); step(); step(); print(size() - before)"
    )
    folder = os.path.dirname(os.path.abspath(__file__))
    made = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return float(made.stdout.split()[-1])


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=["maze20", "nbff", "nbffinf"], choices=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256, 500])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, os.cpu_count() or 1])
    parser.add_argument("--write", action="store_true", help="replace this benchmark's section of README.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    with use_backend("auto"):
        choice = choose(torch.device("cpu"))
    parts = [
        f"{machine('torch', 'pytorch-lightning')}. Backend `{choice.name}`: {choice.reason}.",
        "Relative differences on the same weights, masks and noise (ours in single, theirs in double precision):",
        "\n".join(equality_rows(given.shapes)),
        f"One training step: masks and noise, loss, gradients, clip, AdamW; {RATE:g} spikes per bin, {given.rounds} "
        "rounds in turn. The peer runs without its per-step bits-per-spike metrics unless the column says so; "
        "`medium` is `torch.set_float32_matmul_precision('medium')` for both sides: it may change the peer's maths to "
        "bfloat16 (it does on processors with AMX) and leaves ours as it is.",
        "\n".join(training_table(given.rounds, given.shapes, given.batches, given.threads)),
        "Threads:",
        "\n".join(thread_rows(given.rounds)),
        "Task training, NoisyGRU of 128 units, 3-bit flip-flop of 500 bins, one thread:",
        "\n".join(task_rows(given.rounds, [64, 256])),
        "Posterior means, 50 samples of 64 trials, one thread (theirs runs the encoders once per sample):",
        "\n".join(posterior_rows(given.rounds, ["maze20", "nbff"])),
    ]
    extra = overhead()
    step = statistics.median(in_turn({"cpu": Pair(SHAPES["maze20"], 64).our_step("cpu")}, 3 * given.rounds)["cpu"])
    parts.append(
        f"Lightning, logging and batches add {1000 * extra:.2f} ms to a step, {extra / step:.1%} of one at maze20 with "
        "64 trials."
    )
    parts += ["How a step grows (one thread):", "\n".join(scaling_rows(given.rounds))]
    body = "\n\n".join(parts)
    print(body)
    if given.write:
        write_section(TITLE, body)


if __name__ == "__main__":
    main()
