"""Steps of a closed loop, compiled and plain."""

import subprocess
import sys

import pytest

pytest.importorskip("motornet", reason="MotorNet is not installed")
pytestmark = pytest.mark.acceptance
SHORT = {"n_bins": 20, "target_on": [2, 4], "go": [6, 9], "bump_anywhere": [0, 10], "bump_bins": [2, 4]}

COMPILED = """
import copy
import torch
from ctdb.networks import rollout as rollouts
from ctdb.networks.base import build
from ctdb.networks.rollout import rollout
from ctdb.recurrent import Noise, use_backend
from ctdb.tasks import base as tasks
torch.set_num_threads(1)
short = {short!r}
task = tasks.build({{"kind": "random_target", "simulate": {{"seed": 1, "n_trials": 9, **short}}}})
network = build({{"kind": "noisy_gru", "hidden_size": 8}}, 17, 6, seed=0)
found = {{}}
for n_trials in (9, 4):
    trials = {{k: v[:n_trials] for k, v in tasks.simulation_trials(task).tensors().items()}}
    for backend in ("eager", "cpu"):
        network.zero_grad()
        noise = Noise(torch.Generator().manual_seed(0), torch.arange(n_trials))
        with use_backend(backend):
            run = rollout(network, trials, task.body(), noise)
        task.loss(run, trials).backward()
        found[backend] = [*run, *(p.grad for p in network.parameters())]
    for ours, theirs in zip(found["cpu"], found["eager"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
# The step belongs to no network and no body: another body, and a copy with other weights.
slow = tasks.build({{"kind": "random_target", "bin_s": 0.005, "simulate": {{"seed": 1, "n_trials": 9, **short}}}})
other = copy.deepcopy(network)
with torch.no_grad():
    other.output.bias += 1
trials = tasks.simulation_trials(slow).tensors()
for one, body in ((network, slow.body()), (other, task.body())):
    runs = []
    for backend in ("eager", "cpu"):
        with use_backend(backend), torch.no_grad():
            runs.append(rollout(one, trials, body))
    for ours, theirs in zip(*runs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
assert not rollouts._refused
print("equal")
"""


def test_the_compiled_step_does_what_the_plain_one_does():
    """In a process of its own: torch cannot compile what is wrapped in the tests' type checks."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED.format(short=SHORT)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("equal\n")
