"""K models in one loop end as each does alone: same histories, weights, early stops, divergences and files.

The single fits run on backend `eager`. Sums are taken in another order when models are stacked, so the two agree to
rounding. Adam divides a gradient by its own size, and where that is rounding error, so is the direction of a step:
single precision is compared with a large epsilon, and double precision, where 1e-8 is large, with the usual one.
"""

import contextlib
import functools

import h5py
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml

from ctdb import interruption, models
from ctdb.datasets import MultiSession, SpikeDataset, Split
from ctdb.errors import ConfigError, StoppedError, TrainingDivergedError
from ctdb.provenance import fingerprint
from ctdb.recurrent import Linear, cpu, masked, poisson_nll, use_backend
from ctdb.settings import TrainingSettings
from ctdb.training import fit, fit_together, loop, together

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error:There is a performance drop"),  # vmap would go through the models one by one
]


def make_data(padded=False, contrary=False, behaviors=2):
    """Waves that run over the neurons; on the valid trials of `contrary` data, they run the other way."""
    rng, splits = np.random.default_rng(0), {}
    for name, n_trials in (("train", 14), ("valid", 5), ("test", 3)):
        drive = np.sin(rng.uniform(0, 2 * np.pi, (n_trials, 1, 1)) + np.arange(8)[None, :, None] / 2 + np.arange(5))
        recon = rng.poisson(np.exp(drive[:, :, ::-1] if contrary and name == "valid" else drive)).astype(np.float32)
        more = {"n_bins": np.r_[8, rng.integers(3, 9, n_trials - 1)]} if padded else {}
        if behaviors:
            more["behavior"] = rng.normal(size=(n_trials, 8, behaviors)).astype(np.float32)
            more["behavior"][0, 2] = np.nan
        ext_input = rng.normal(size=(n_trials, 8, 1)).astype(np.float32)
        splits[name] = Split(encod_data=recon[:, :7, :4].copy(), recon_data=recon, ext_input=ext_input, **more)
    return SpikeDataset(splits, bin_s=0.01)


LFADS = {
    **{"kind": "lfads", "ic_enc_dim": 4, "ic_dim": 3, "ci_enc_dim": 3, "con_dim": 4, "co_dim": 2, "gen_dim": 6},
    **{"fac_dim": 3, "n_samples": 2, "kl_increase_epoch": 1, "l2_increase_epoch": 1, "l2_gen_scale": 0.3},
}
TRAINING = {"max_epochs": 2, "batch_size": 8, "learning_rate": 0.01}
OWN = (
    {"seed": 1, "kl_ic_scale": 0.5, "l2_con_scale": 0.2, "training": {"gradient_clip": 0.05, "epsilon": 1e-3}},
    {
        **{
            "seed": 2,
            "dropout_rate": 0.0,
            "cd_rate": 0.2,
            "cd_pass_rate": 0.3,
            "kl_co_scale": 2.0,
            "l2_gen_scale": 0.0,
        },
        "training": {"learning_rate": 0.003, "gradient_clip": 0.3, "epsilon": 1e-2, "weight_decay": 0.3},
    },
    {
        **{"seed": 3, "dropout_rate": 0.15, "cd_rate": 0.0, "kl_ic_target": 0.4, "kl_co_target": 0.1},
        "training": {"learning_rate": 0.02, "gradient_clip": None, "epsilon": 5e-3, "weight_decay": 0.1},
    },
)
AUTOENCODER = {"kind": "sae_gru", "latent_size": 4, "encoder_size": 3}
OWN_RATES = (
    {"seed": 1, "dropout": 0.3, "training": OWN[0]["training"]},
    {"seed": 2, "dropout": 0.0, "initial_state_dropout": 0.2, "training": OWN[1]["training"]},
    {"seed": 3, "dropout": 0.1, "initial_state_dropout": 0.0, "training": OWN[2]["training"]},
)


def specs_of(kind, own, *, training=None, **changed):
    """Specs with settings of their own upon common ones."""
    return [
        {**kind, **one, **changed, "training": {**TRAINING, **one.get("training", {}), **(training or {})}}
        for one in own
    ]


NO_CONTROLLER = {"ci_enc_dim": 0, "con_dim": 0, "co_dim": 0}
NO_CI_SETTINGS = [{name: value for name, value in one.items() if not name.startswith("l2_con")} for one in OWN]
BEHAVIOR = [one | {"behavior_weight": weight} for one, weight in zip(OWN, (0.2, 1.0, 3.0), strict=True)]
CASES = {
    "lfads": (specs_of(LFADS, OWN), {}),
    "lfads without controller": (specs_of(LFADS | NO_CONTROLLER, NO_CI_SETTINGS), {}),
    "lfads, gru, first bins, hidden samples": (
        specs_of(LFADS, OWN, cell="gru", ic_enc_seq_len=2, sv_rate=0.2, cd_heldout=True),
        {},
    ),
    "lfads, adamw, padded": (specs_of(LFADS, OWN, training={"optimizer": "adamw"}), {"padded": True}),
    "lfads, weights that nothing reaches": (
        specs_of(LFADS, OWN, ic_prior={"kind": "none"}, co_prior={"kind": "student_t"}, temporal_shift=1.5),
        {},
    ),
    "band": (specs_of(LFADS | {"kind": "band"}, BEHAVIOR), {}),
    "sae_gru": (specs_of(AUTOENCODER, OWN_RATES), {}),
    "sae_gru, padded": (specs_of(AUTOENCODER, OWN_RATES), {"padded": True}),
    "sae_rnn": (specs_of(AUTOENCODER | {"kind": "sae_rnn"}, OWN_RATES), {}),
    "sae_node": (specs_of(AUTOENCODER | {"kind": "sae_node", "field_layers": 2, "field_width": 5}, OWN_RATES), {}),
    "lds": (specs_of(AUTOENCODER | {"kind": "lds"}, OWN_RATES), {}),
}


def build(spec, data, double=False):
    model = models.build(spec, data)
    if not double:
        return model
    tensors = model.fit_tensors

    def in_double(trials, session=None):
        return {name: value.double() if value.is_floating_point() else value for name, value in tensors(trials).items()}

    model.fit_tensors = in_double
    return model.double()


def with_backend(spec, backend):
    return spec | {"training": spec["training"] | {"backend": backend}}


def fit_alone(specs, data, out, double=False):
    results = []
    for number, spec in enumerate(specs):
        spec = with_backend(spec, "eager")
        try:
            results.append(fit(build(spec, data, double), data, spec, out / f"{number}"))
        except TrainingDivergedError:
            results.append(None)
    return results


def fit_all(specs, data, out, double=False):
    outs = [out / f"{number}" for number in range(len(specs))]
    return fit_together([build(spec, data, double) for spec in specs], data, specs, outs)


def weights_in(folder):
    return safetensors.torch.load_file(folder / "weights.safetensors")


def arrays_in(folder):
    with h5py.File(folder / "output.h5") as file:
        return {name: value[()] for name, value in file.items()}, dict(file.attrs)


def assert_same_fit(found, expected, tolerance):
    """Same files in two folders, whose numbers agree."""
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    history, reference = (pd.read_csv(folder / "history.csv") for folder in (found, expected))
    assert list(history) == list(reference)
    assert len(history) == len(reference)
    np.testing.assert_allclose(history, reference, rtol=tolerance, atol=tolerance)
    ours, theirs = weights_in(found), weights_in(expected)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    (ours, about), (theirs, about_theirs) = arrays_in(found), arrays_in(expected)
    assert ours.keys() == theirs.keys()
    assert about == about_theirs
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=10 * tolerance, atol=10 * tolerance, err_msg=name)
    spec, reference = (yaml.safe_load((folder / "spec.yaml").read_text()) for folder in (found, expected))
    for one in (spec, reference):
        one["model"]["training"].pop("backend")
    if reference["best_valid_loss"] is not None:
        assert spec.pop("best_valid_loss") == pytest.approx(reference.pop("best_valid_loss"), rel=tolerance)
    assert spec == reference


IN_SINGLE = ("lfads", "band", "sae_gru")


@pytest.mark.parametrize("case", CASES)
def test_in_double_precision_each_model_ends_as_it_does_alone(case, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: False)  # its normal numbers differ from torch's in single precision
    specs, shape = CASES[case]
    specs = [spec | {"training": spec["training"] | {"epsilon": 1e-8}} for spec in specs]
    assert_each_as_alone(specs, make_data(**shape), tmp_path, 1e-10, double=True)


@pytest.mark.parametrize("case", IN_SINGLE)
def test_in_single_precision_each_model_ends_as_it_does_alone(case, tmp_path):
    specs, shape = CASES[case]
    assert_each_as_alone(specs, make_data(**shape), tmp_path, 2e-6)


def assert_each_as_alone(specs, data, out, tolerance, double=False):
    alone, found = fit_alone(specs, data, out / "alone", double), fit_all(specs, data, out / "together", double)
    for number, (one, reference) in enumerate(zip(found, alone, strict=True)):
        assert (one.best_epoch, one.diverged) == (reference.best_epoch, None)
        assert_same_fit(out / f"together/{number}", out / f"alone/{number}", tolerance)
        written = pd.read_csv(out / f"together/{number}/history.csv")
        pd.testing.assert_frame_equal(written, one.history, check_exact=True)
    assert found[0].history["gradient_norm"].max() > specs[0]["training"]["gradient_clip"], "nothing was clipped"


# ------------------------------------------------------------------------------------------------- leaving the loop


SETTLING = specs_of(
    AUTOENCODER | {"kind": "lds"},
    [
        {"seed": 1},
        {"seed": 2, "training": {"learning_rate": 0.2, "patience": 2, "smoothing": 0.2}},
        {"seed": 3, "training": {"learning_rate": 0.5, "gradient_clip": None}},
        {"seed": 4, "training": {"burn_in": 4, "patience": 3, "epsilon": 1e-5}},
        {"seed": 5, "training": {"learning_rate": 0.1, "plateau": {"factor": 0.5, "patience": 1, "minimum": 0.01}}},
    ],
    training={"max_epochs": 9, "batch_size": 6},
)
"""One goes on to the end, one stops early, one diverges, one waits for the end of burn-in, one lowers its rate."""


@pytest.fixture(scope="module", autouse=True)
def a_checkpoint_after_every_epoch_and_one_look_at_the_code():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CTDB_CHECKPOINT_SECONDS", "0")
        for module in (loop, together):
            patch.setattr(module, "fingerprint", once)
        yield


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    out, data = tmp_path_factory.mktemp("settled"), make_data(contrary=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "available", lambda: False)
        fit_alone(SETTLING, data, out / "alone", double=True)
        return out, data, fit_all(SETTLING, data, out / "together", double=True)


def test_models_that_stop_early_or_diverge_leave_the_others_as_they_are_alone(settled):
    out, _, found = settled
    for number in range(len(SETTLING)):
        assert_same_fit(out / f"together/{number}", out / f"alone/{number}", 1e-9)
    lengths = [len(one.history) for one in found]
    assert lengths[0] == lengths[4] == 9
    assert lengths[2] == 2 < lengths[1] == 5 < lengths[3] < 9, "they must leave one after another"
    assert [one.history["learning_rate"].nunique() > 1 for one in found] == [False, False, False, False, True]


def test_a_divergence_is_told_of_its_model_alone(settled):
    out, _, found = settled
    assert [one.diverged is None for one in found] == [True, True, False, True, True]
    alone = yaml.safe_load((out / "alone/2/spec.yaml").read_text())
    assert found[2].diverged == alone["reason"]
    assert alone["status"] == "diverged"
    with pytest.raises(TrainingDivergedError, match="became"):
        found[2].raise_if_diverged()
    assert all(value.isfinite().all() for value in weights_in(out / "together/2").values())


def test_when_all_have_left_the_loop_ends(tmp_path, capsys):
    specs = [spec | {"training": spec["training"] | {"max_epochs": 500}} for spec in SETTLING[1:3]]
    found = fit_all(specs, make_data(contrary=True), tmp_path)
    assert all(len(one.history) < 50 for one in found)
    printed = capsys.readouterr().out
    assert "2 models train together on cpu; recurrent loops run eagerly under vmap" in printed
    assert f"{tmp_path / '0'}: stopped early after epoch {len(found[0].history)}" in printed
    assert f"{tmp_path / '1'}: {found[1].diverged}" in printed


# ------------------------------------------------------------------------------------------------------------ kills


once = functools.cache(fingerprint)


class KilledError(Exception):
    pass


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextlib.contextmanager
def killed_at(owner, name, call):
    """The process dies in a call of a function, counted from 1."""
    calls, function = [], getattr(owner, name)

    def counted(*arguments, **options):
        calls.append(None)
        if len(calls) == call:
            raise KilledError
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        with pytest.raises(KilledError):
            yield


MOMENTS = {  # 3 steps in an epoch
    "in the first epoch": (together._Stack, "_training_step", 2),
    "before any has left": (together._Stack, "_training_step", 4),
    "when one has diverged": (together._Stack, "_training_step", 3 * 3 + 3),
    "when two have left": (together._Stack, "_training_step", 3 * 6 + 2),
    "before the outputs": (together, "conclude", 1),
    "between the outputs": (together, "write_fit", 3),
    "before the checkpoint is removed": (together, "discard_checkpoint", 1),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out, data = tmp_path_factory.mktemp("undisturbed"), make_data(contrary=True)
    return out, data, fit_all(SETTLING, data, out)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_bytes(moment, undisturbed, tmp_path, capsys):
    out, data, expected = undisturbed
    with killed_at(*MOMENTS[moment]):
        fit_all(SETTLING, data, tmp_path)
    capsys.readouterr()
    again = fit_all(SETTLING, data, tmp_path)
    assert ("continuing from" in capsys.readouterr().out) == (moment != "in the first epoch")
    assert contents(tmp_path) == contents(out)
    for one, reference in zip(again, expected, strict=True):
        assert one.facts() == reference.facts()


def test_the_checkpoint_holds_tensors_and_plain_values_and_is_gone_in_the_end(undisturbed, tmp_path):
    out, data, _ = undisturbed
    assert not list(out.glob("*/checkpoint"))
    with killed_at(*MOMENTS["when two have left"]):
        fit_all(SETTLING, data, tmp_path)
    saved = torch.load(tmp_path / "0/checkpoint/together.ckpt", weights_only=True)
    assert saved["epoch"] == 6
    assert saved["stack"]["active"] == [0, 3, 4]
    assert [path.parent.name for path in tmp_path.glob("*/checkpoint")] == ["0"]


def test_a_run_told_to_stop_ends_at_a_checkpoint_and_goes_on_to_the_same_bytes(undisturbed, tmp_path, monkeypatch):
    out, data, _ = undisturbed
    monkeypatch.setenv("CTDB_CHECKPOINT_SECONDS", "100000")
    with monkeypatch.context() as patch:
        patch.setattr(interruption, "is_asked", lambda: True)
        with pytest.raises(StoppedError, match="told to stop"):
            fit_all(SETTLING, data, tmp_path)
    assert torch.load(tmp_path / "0/checkpoint/together.ckpt", weights_only=True)["epoch"] == 1
    fit_all(SETTLING, data, tmp_path)
    assert contents(tmp_path) == contents(out)


OTHER_RUNS = {
    "a seed": lambda specs: [*specs[:-1], specs[-1] | {"seed": 9}],
    "a rate": lambda specs: [specs[0] | {"dropout": 0.21}, *specs[1:]],
    "the order": lambda specs: specs[::-1],
    "the number": lambda specs: specs[:-1],
}


@pytest.mark.parametrize("change", OTHER_RUNS)
def test_the_checkpoint_of_another_run_is_not_continued(change, tmp_path, capsys):
    specs, data = specs_of(AUTOENCODER, OWN_RATES), make_data()
    with killed_at(together._Stack, "_training_step", 4):
        fit_all(specs, data, tmp_path)
    fit_all(OTHER_RUNS[change](specs), data, tmp_path)
    assert "starting afresh" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- the parts


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("decays", [(0.0, 0.0, 0.0), (0.0, 0.3, 0.01)], ids=["plain", "decay"])
def test_adam_is_that_of_torch_at_each_model_s_own_rate(optimizer, decays):
    settings = [
        TrainingSettings(optimizer=optimizer, learning_rate=rate, epsilon=epsilon, weight_decay=decay)
        for rate, epsilon, decay in zip((0.1, 0.003, 1.0), (1e-8, 0.1, 1e-3), decays, strict=True)
    ]
    rng = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 7, generator=rng, dtype=torch.float64)
    gradients = torch.randn(12, 3, 7, generator=rng, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 100.0])[:, None]
    gradients[:, :, 0] = 0
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    expected = []
    for number, one in enumerate(settings):
        weight = weights[number].clone().requires_grad_()
        options = {"lr": one.learning_rate, "eps": one.epsilon, "weight_decay": one.weight_decay, "fused": True}
        reference = kind([weight], **options)
        for step, gradient in enumerate(gradients[:, number]):
            if step == 6:  # as a plateau does
                reference.param_groups[0]["lr"] /= 2
            weight.grad = gradient.clone()
            reference.step()
        expected.append(weight.detach())
    adam = together.Adam(settings, gradients[0])
    for step, gradient in enumerate(gradients):
        rates = torch.tensor([[one.learning_rate / (1 if step < 6 else 2)] for one in settings], dtype=torch.float64)
        weights = weights + adam.change(step + 1, rates, weights, gradient)
    torch.testing.assert_close(weights, torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_adam_goes_on_with_the_models_that_are_kept():
    settings = [TrainingSettings(epsilon=epsilon, weight_decay=0.1) for epsilon in (1e-8, 0.1, 1e-3)]
    gradients = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, some, weights = together.Adam(settings, gradients[0]), together.Adam(settings, gradients[0]), gradients[3]
    rates = torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64)
    for step in (1, 2):
        for adam in (whole, some):
            adam.change(step, rates, weights, gradients[step])
    some.select(torch.tensor([0, 2]))
    kept = some.change(3, rates[[0, 2]], weights[[0, 2]], gradients[0][[0, 2]])
    assert torch.equal(kept, whole.change(3, rates, weights, gradients[0])[[0, 2]])


@pytest.mark.parametrize("backend", ["cpu", "torch", "eager"])
def test_under_vmap_the_loops_choose_the_definition_by_themselves(backend):
    if backend == "cpu" and cpu.why_not():
        pytest.skip(f"the CPU kernels cannot be had here: {cpu.why_not()}")
    rng = torch.Generator().manual_seed(0)
    factors, weight = torch.randn(3, 4, 5, 2, generator=rng), torch.ones(3, 4, 5, 1)
    readouts, counts = torch.randn(3, 6, 2, generator=rng), torch.poisson(torch.ones(3, 4, 5, 6), generator=rng)
    masks = (torch.rand(3, 4, 5, 6, generator=rng) > 0.5).to(torch.uint8)

    def loss(factors, readout, counts, mask, weight):
        seen = masked(counts.to(torch.uint8), [mask], torch.full((5,), 2.0))
        return poisson_nll(factors, Linear(readout, readout[:, 0]), seen, weight, mask)

    given = factors.requires_grad_(), readouts, counts, masks, weight
    with use_backend(backend):
        found = torch.vmap(loss)(*given)
        expected = torch.stack([loss(*one) for one in zip(*given, strict=True)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(one.sum(), factors)[0] for one in (found, expected)))


def test_frozen_weights_stay(tmp_path):
    specs = specs_of(LFADS, OWN[:2], freeze=["generator", "readout"], training={"max_epochs": 1, "weight_decay": 0.3})
    data = make_data()
    started = [models.build(spec, data).state_dict() for spec in specs]
    fit_all(specs, data, tmp_path)
    for number, before in enumerate(started):
        after = weights_in(tmp_path / f"{number}")
        frozen = {name for name in before if name.startswith(("generator", "readout"))}
        assert {name for name in before if torch.equal(before[name], after[name])} >= frozen
        assert not torch.equal(before["controller.weight_hh"], after["controller.weight_hh"])


def test_what_the_models_share_is_held_once(tmp_path):
    data = make_data()
    specs = specs_of(LFADS, OWN, sv_rate=0.3)
    built = [models.build(spec, data) for spec in specs]
    runs = [together.Run.of(model, spec) for model, spec in zip(built, specs, strict=True)]
    train_data, valid_data, _ = together._data(built, data, runs, torch.device("cpu"))
    for trials in (train_data, valid_data):
        assert trials.own.keys() == {"sv_mask"}
        assert trials.shared.keys() >= {"encod_data", "recon_data", "behavior", "weight"}
    chosen = [batch["trial_index"] for batch in train_data.epoch(0)]
    assert not torch.equal(chosen[0][0], chosen[0][1])
    assert all(sorted(one) == list(range(14)) for one in torch.cat(chosen, 1).tolist())


# ---------------------------------------------------------------------------------------------------------- refusals


def two(first=None, second=None, base=LFADS):
    return specs_of(base, [{"seed": 1} | (first or {}), {"seed": 2} | (second or {})])


BAND = LFADS | {"kind": "band"}
REFUSED = {
    "another size": (two({}, {"gen_dim": 7}), r"gen_dim is 6, 7; give all the same, or fit them in groups \(they may"),
    "another prior": (two({}, {"ic_prior": {"kind": "none"}}), "ic_prior is NormalPriorSettings"),
    "another ramp": (two({"kl_increase_epoch": 3}), "kl_increase_epoch is 3, 1; give all the same"),
    "two at once": (two({"cell_clip": 3.0}, {"co_dim": 1}), "cell_clip is 3.0, 5.0; .*co_dim is 2, 1; "),
    "epochs": (two({"training": {"max_epochs": 4}}), "training.max_epochs is 4, 2; give all the same"),
    "batches": (two({"training": {"batch_size": 4}}), "training.batch_size is 4, 8; give all the same"),
    "optimizer": (two({"training": {"optimizer": "adamw"}}), "training.optimizer is 'adamw', 'adam'; give"),
    "kinds": (two({"kind": "band"}), "must be of one kind, but these are BAND, LFADS; fit each kind by itself"),
    "jitter": (specs_of(LFADS, OWN, spike_jitter=1), "LFADS cannot train together with others: spike_jitter takes as"),
    "behavior without weight": (
        two({"behavior_weight": 0.0}, {"behavior_weight": 0.3}, BAND),
        "behavior_weight is 0.0, 0.3; where it differs it must be above 0: fit those with 0 apart",
    ),
    "a backend": (
        specs_of(LFADS, OWN, training={"backend": "torch"}),
        "training.backend: is 'torch', but models that train together run eagerly; choose 'auto' or 'eager'",
    ),
    "frozen in one": (two({"freeze": ["generator"]}), r"freeze is \['generator'\], \[\]; give all the same"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_train_together_are_refused_with_key_values_and_remedy(case, tmp_path):
    specs, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        fit_all(specs, make_data(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_of_other_shapes_precision_or_sessions_are_refused(tmp_path):
    data, specs, outs = make_data(), two(), [tmp_path / "a", tmp_path / "b"]
    first = models.build(specs[0], data)
    with pytest.raises(ConfigError, match=r"built for the same dataset, but their sizes differ: .*'n_behaviors': 2.*3"):
        fit_together([first, models.build(specs[1], make_data(behaviors=3))], data, specs, outs)
    with pytest.raises(
        ConfigError, match=r"must have the same weights, but .*float32.* in one and .*float64.* in anot"
    ):
        fit_together([first, models.build(specs[1], data).double()], data, specs, outs)
    thawed = models.build(specs[1], data)
    thawed.generator.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"must have the same weights, but generator.weight_ih is .*True"):
        fit_together([first, thawed], data, specs, outs)
    with pytest.raises(ConfigError, match="on one session, but several were given; fit such models one by one"):
        fit_together([first, models.build(specs[1], data)], MultiSession({"a": data}), specs, outs)
    with pytest.raises(ConfigError, match="built from another spec"):
        fit_together([models.build(specs[1], data), first], data, specs, outs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("n_models", "n_specs", "folders", "found"),
    [
        (2, 1, "ab", "2 different models, 1 specs and 2 different folders"),
        (2, 2, "aa", "2 different models, 2 specs and 1 different folders"),
        (0, 0, "", "0 different models, 0 specs and 0 different folders"),
    ],
)
def test_one_spec_and_folder_for_every_model(n_models, n_specs, folders, found, tmp_path):
    data, specs = make_data(), two()
    built = [models.build(spec, data) for spec in specs]
    with pytest.raises(ConfigError, match=f"{found} were given; give one of each for every model"):
        fit_together(built[:n_models], data, specs[:n_specs], [tmp_path / name for name in folders])
    with pytest.raises(ConfigError, match="1 different models, 2 specs"):
        fit_together([built[0], built[0]], data, specs, [tmp_path / "a", tmp_path / "b"])
