"""What a run records and selects by, what it says when it goes wrong, and what it remembers after a kill."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ctdb.errors import TrainingDivergedError
from ctdb.settings import TrainingSettings
from ctdb.training import Batches, SessionBatches, train

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST_COLUMNS = ["epoch", "train_loss", "valid_loss", "learning_rate", "gradient_norm"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def a_checkpoint_after_every_epoch(monkeypatch):
    monkeypatch.setenv("CTDB_CHECKPOINT_SECONDS", "0")


class Scripted(nn.Module):
    """A module that does in each epoch and step what `train_terms(epoch, step)` and `valid_terms(epoch)` say.

    The loss is the sum of the terms; `weight` counts the training steps. `drift` is what a step adds to it.
    """

    def __init__(self, train_terms=lambda epoch, step: {"nll": 1.0}, valid_terms=lambda epoch: {"nll": 1.0}, n_steps=4):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))
        self.train_terms, self.valid_terms, self.n_steps = train_terms, valid_terms, n_steps
        self.epochs = []

    def start_epoch(self, epoch):
        self.epochs.append(epoch)

    def loss_and_terms(self, batch, generator):
        epoch = self.epochs[-1]
        if self.training:
            terms = self.train_terms(epoch, int(self.steps) % self.n_steps)
            self.steps += 1
        else:
            terms = self.valid_terms(epoch)
        terms = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in terms.items()}
        return sum(terms.values()) + 0 * self.weight, terms


def settings(**changed):
    return TrainingSettings(**({"max_epochs": 6, "batch_size": 3, "learning_rate": 0.05} | changed))


def run(module, out, n_train=12, **options):
    data = Batches({"x": torch.zeros(n_train, 1)}, 3, shuffle_seed=0), Batches({"x": torch.zeros(4, 1)}, 4)
    return train(module, *data, settings(**options), seed=0, out=out)


# -------------------------------------------------------------------------------------------------- the loss's terms


class Measured(nn.Module):
    """Its terms are means over values, whatever its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def loss_and_terms(self, batch, generator):
        parts = batch.values() if "x" not in batch else [batch]
        bins = sum(one["weight"].mean(2).sum() for one in parts)
        terms = {
            name: sum((one["weight"] * power(one["x"])).mean(2).sum() for one in parts) / bins
            for name, power in (("first", lambda x: x), ("second", torch.square))
        }
        if self.training:
            terms["in training"] = torch.tensor(3.0)
        return terms["first"] + 2 * terms["second"] + 0 * self.weight, terms


def measured_data(n_trials, seed, n_neurons=2, missing=0.0):
    x = torch.randn(n_trials, 5, n_neurons, generator=generator(seed))
    weight = torch.ones(n_trials, 5, 1)
    weight[:, :, 0] = torch.arange(5) < torch.randint(1, 6, (n_trials, 1), generator=generator(seed + 1))
    if missing:
        weight = weight * (torch.rand(x.shape, generator=generator(seed + 2)) > missing)
    return {"x": x, "weight": weight}


def moments(*sessions):
    """Means of x and x^2 over all that counts, a neuron's value weighing one part in its session's neurons."""
    x = np.concatenate([one["x"].double().numpy().ravel() for one in sessions])
    weight = np.concatenate(
        [(one["weight"].expand_as(one["x"]).double() / one["x"].shape[2]).numpy().ravel() for one in sessions]
    )
    return np.average(x, weights=weight), np.average(x**2, weights=weight)


def assert_terms(history, train_data, valid_data):
    assert list(history) == [
        *FIRST_COLUMNS,
        "train_first",
        "train_second",
        "train_in training",
        "valid_first",
        "valid_second",
    ]
    for phase, data in (("train", train_data), ("valid", valid_data)):
        first, second = moments(*data)
        np.testing.assert_allclose(history[f"{phase}_first"], first, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(history[f"{phase}_second"], second, rtol=1e-4)
        np.testing.assert_allclose(history[f"{phase}_loss"], first + 2 * second, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(history["train_in training"], 3, rtol=1e-5)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_terms_of_the_loss_are_means_over_all_trials_however_they_are_batched(batch_size, missing, tmp_path):
    train_data, valid_data = measured_data(23, 0, missing=missing), measured_data(9, 5, missing=missing)
    batches = Batches(train_data, batch_size, 0), Batches(valid_data, batch_size)
    result = train(Measured(), *batches, settings(max_epochs=2), seed=0, out=tmp_path)
    assert_terms(result.history, [train_data], [valid_data])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), result.history, check_exact=True)


def test_terms_of_several_sessions_are_means_over_all_of_them(tmp_path):
    train_data = {"a": measured_data(23, 0), "b": measured_data(4, 5, n_neurons=7, missing=0.3)}
    valid_data = {"a": measured_data(3, 10), "b": measured_data(9, 15, n_neurons=7)}
    batches = SessionBatches(train_data, 8, 0), SessionBatches(valid_data, 8)
    result = train(Measured(), *batches, settings(max_epochs=2), seed=0, out=tmp_path)
    assert_terms(result.history, train_data.values(), valid_data.values())


# ------------------------------------------------------------------------------------------------------- gradients


class Steep(nn.Module):
    """A loss linear in its weights, whose gradient is a direction times what the batch and the epoch say."""

    direction = torch.tensor([3.0, 0.0, 4.0])

    def __init__(self, epoch_scales):
        super().__init__()
        self.weight, self.frozen = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2))
        self.epoch_scales, self.epoch = epoch_scales, None

    def start_epoch(self, epoch):
        self.epoch = epoch

    def loss(self, batch, generator):
        scale = self.epoch_scales[self.epoch] if self.training else 1.0
        return scale * batch["x"].mean() * (self.weight @ self.direction)


def run_steep(epoch_scales, out, clip=1.0, **options):
    x = torch.tensor([0.1, 0.2, 0.3, -3.0, -2.0, -1.0, 0.5, 0.5, 0.5])[:, None]  # largest norm in the second of three
    module = Steep(epoch_scales)
    options = settings(max_epochs=len(epoch_scales), gradient_clip=clip, **options)
    return module, train(module, Batches({"x": x}, 3), Batches({"x": x}, 9), options, seed=0, out=out)


@pytest.mark.parametrize("clip", [None, 0.01, 20.0])
def test_the_gradient_norm_is_the_largest_of_an_epoch_before_it_was_clipped(clip, tmp_path):
    module, result = run_steep([1.0, 2.0, 0.5], tmp_path, clip)
    np.testing.assert_allclose(result.history["gradient_norm"], [2 * 5 * scale for scale in (1.0, 2.0, 0.5)], rtol=1e-6)
    assert (module.unused == 1).all()
    assert (module.frozen == 1).all()


@pytest.mark.parametrize(("size", "told"), [(1e5, True), (1.1e3, True), (0.9e3, False), (1.0, False)])
def test_a_gradient_that_exploded_and_was_clipped_is_told(size, told, tmp_path, capsys):
    _, result = run_steep([1.0, 1.0, 1.0, size, 1.0, 1.2], tmp_path)
    facts, printed = result.facts(), capsys.readouterr().out
    assert facts["status"] == "ok"
    if told:
        [warning] = facts["warnings"]
        assert (
            f"the gradient exploded in epoch 3: its norm was {10 * size:.3g}, the median of all epochs is 10" in warning
        )
        assert "A lower learning_rate or a lower gradient_clip usually cures it" in warning
        assert f"warning: {warning}" in printed
    else:
        assert facts["warnings"] == []
        assert "warning" not in printed


class Informed(Scripted):
    """Warns of what it is told of its best epoch."""

    def warnings(self, terms):
        return [f"kl was {terms['train_kl']:.0f} in training, {terms['valid_kl']:.0f} in validation"]


def test_a_module_may_warn_of_the_terms_of_its_best_epoch(tmp_path):
    nll = [5.0, 3.0, 1.0, 1.0]
    module = Informed(lambda epoch, step: {"kl": 10 + epoch}, lambda epoch: {"nll": nll[epoch], "kl": epoch})
    result = run(module, tmp_path, max_epochs=4)
    assert result.best_epoch == 2
    assert result.facts()["warnings"] == ["kl was 12 in training, 2 in validation"]


def test_a_run_without_a_good_epoch_has_no_terms_to_warn_of(tmp_path):
    module = Informed(lambda epoch, step: {"kl": math.nan}, lambda epoch: {"kl": 0.0})
    assert run(module, tmp_path).facts()["warnings"] == []


# ------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_term_that_is_not_finite_in_training_is_named_with_its_step(value, word, tmp_path):
    def terms(epoch, step):
        return {"nll": 1.0, "kl": value if (epoch, step) == (2, 1) else 0.5, "l2": 0.1}

    module = Scripted(terms, lambda epoch: {"nll": 5.0 - epoch, "kl": 0.5})
    result = run(module, tmp_path)
    assert result.diverged.startswith(
        f"the loss became {word} (in train_kl) in training step 9 (epoch 2); the weights of epoch 1 are kept. "
    )
    assert result.best_epoch == 1
    assert module.steps == 8
    assert len(result.history) == 3
    assert result.facts()["reason"] == result.diverged
    with pytest.raises(TrainingDivergedError, match=r"\(in train_kl\) in training step 9 "):
        result.raise_if_diverged()


def test_a_term_that_is_not_finite_in_validation_is_named_with_its_epoch(tmp_path):
    module = Scripted(valid_terms=lambda epoch: {"nll": 5.0 - epoch, "behavior": math.nan if epoch == 3 else 1.0})
    result = run(module, tmp_path)
    assert result.diverged.startswith(
        "the loss became NaN (in valid_behavior) in the validation of epoch 3, after training step 15; "
        "the weights of epoch 2 are kept. "
    )
    assert module.steps == 12


def test_the_term_that_went_wrong_first_is_named_alone(tmp_path):
    class Spoilt(Scripted):
        def loss_and_terms(self, batch, generator):
            _, terms = super().loss_and_terms(batch, generator)
            terms["nll"] = terms["nll"] + self.weight
            if self.training and self.steps == 10:
                terms["kl"] = self.weight * math.nan
            return sum(terms.values()), terms

    module = Spoilt(lambda epoch, step: {"nll": 1.0, "kl": 0.5}, lambda epoch: {"nll": 1.0, "kl": 0.5})
    assert "(in train_kl)" in run(module, tmp_path).diverged


class InfinitelySteep(nn.Module):
    """Its weight follows a plain loss; in one step the gradient is infinite, and the loss is not."""

    def __init__(self, bad_step):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.register_buffer("steps", torch.zeros(()))
        self.bad_step = bad_step

    def loss(self, batch, generator):
        loss = ((self.weight - 3) ** 2).sum()
        if self.training:
            if self.steps == self.bad_step:
                loss = loss + (self.weight[0] - self.weight[0].detach()).sqrt()  # 0, of slope 1 / (2 sqrt(0))
            self.steps += 1
        return loss


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bad_step", [0, 5, 7, 23])  # the first step of all, within an epoch, the last step of one
def test_an_infinite_gradient_of_a_finite_loss_is_named_with_its_step(bad_step, clip, tmp_path):
    module = InfinitelySteep(bad_step)
    result = run(module, tmp_path / "bad", gradient_clip=clip)
    epoch = bad_step // 4
    kept = f"the weights of epoch {epoch - 1}" if epoch else "the initial weights"
    assert result.diverged.startswith(
        f"the gradient became NaN or infinite in training step {bad_step} (epoch {epoch}); {kept} are kept. "
    )
    assert result.best_epoch == epoch - 1
    assert result.warnings == []  # the reason says it
    assert module.steps == 4 * epoch
    if epoch:
        good = InfinitelySteep(None)
        run(good, tmp_path / "good", gradient_clip=clip, max_epochs=epoch)
        assert torch.equal(module.weight, good.weight)
    else:
        assert module.weight.tolist() == [1, 2]


def test_a_loss_that_goes_wrong_before_its_gradient_is_named_as_the_loss(tmp_path):
    class Wrong(InfinitelySteep):
        def loss(self, batch, generator):
            bad = self.training and self.steps == self.bad_step
            return super().loss(batch, generator) * (math.inf if bad else 1)

    result = run(Wrong(5), tmp_path)
    assert result.diverged.startswith("the loss became ")
    assert "in training step 5 (epoch 1); the weights of epoch 0 are kept" in result.diverged


@pytest.mark.parametrize("bad_step", [5, 7, 23])  # within an epoch, the last step of one and of all
def test_weights_spoilt_by_a_gradient_are_not_kept_where_the_valid_loss_does_not_see_them(bad_step, tmp_path):
    class HalfSeen(InfinitelySteep):
        def loss(self, batch, generator):
            return super().loss(batch, generator) if self.training else ((self.weight[1] - 3) ** 2)

    module = HalfSeen(bad_step)
    result = run(module, tmp_path)
    assert result.diverged is not None
    assert result.best_epoch == bad_step // 4 - 1
    assert module.weight.isfinite().all()


# -------------------------------------------------------------------------------------------------------- selection


def chosen_by_hand(losses, smoothing, burn_in, patience):
    """Epoch with the lowest smoothed loss, and how many epochs run, from the definition and not from a recursion."""
    losses = np.asarray(losses, np.float32).astype(float)
    smoothed = [
        smoothing**epoch * losses[0]
        + sum((1 - smoothing) * smoothing ** (epoch - k) * losses[k] for k in range(1, epoch + 1))
        for epoch in range(len(losses))
    ]
    for last in range(len(losses)):
        eligible = range(burn_in, last + 1)
        best = min(eligible, key=lambda epoch: smoothed[epoch], default=None)
        if best is not None and patience is not None and last - best >= patience:
            break
    return best, last + 1


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("burn_in", "patience"), [(0, None), (0, 3), (6, None), (6, 3), (4, 1), (13, 2)])
def test_smoothing_and_burn_in_select_and_stop_as_defined(smoothing, burn_in, patience, tmp_path):
    losses = 3 - 0.05 * np.arange(14) + np.random.default_rng(burn_in).normal(size=14)
    losses[1] -= 3  # a lucky epoch, which burn-in must not see
    module = Scripted(valid_terms=lambda epoch: {"nll": losses[epoch]})
    options = {"smoothing": smoothing, "burn_in": burn_in, "patience": patience, "max_epochs": 14}
    result = run(module, tmp_path, n_train=3, **options)
    best, n_epochs = chosen_by_hand(losses, smoothing, burn_in, patience)
    assert (result.best_epoch, len(result.history)) == (best, n_epochs)
    assert module.steps == best + 1
    assert result.facts()["best_valid_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_patience_counts_from_the_end_of_burn_in(tmp_path):
    module = Scripted(valid_terms=lambda epoch: {"nll": 1.0 + epoch})  # never better than at first
    result = run(module, tmp_path, max_epochs=20, burn_in=7, patience=3)
    assert result.best_epoch == 7
    assert result.history["epoch"].tolist() == list(range(11))


def test_a_run_that_diverges_in_burn_in_keeps_the_initial_weights(tmp_path):
    module = Scripted(valid_terms=lambda epoch: {"nll": math.nan if epoch == 2 else 1.0})
    result = run(module, tmp_path, burn_in=4)
    assert "the initial weights are kept" in result.diverged
    assert (result.best_epoch, int(module.steps)) == (-1, 0)
    assert result.facts()["best_valid_loss"] is None


def test_the_plateau_follows_the_smoothed_loss(tmp_path):
    losses = [4.0, 2.0, 3.0, 2.5, 2.4, 2.3, 2.6, 2.7]
    options = {"plateau": {"factor": 0.5, "patience": 1, "minimum": 0.0}, "max_epochs": 8, "learning_rate": 0.1}

    def rates(out, smoothing):
        module = Scripted(valid_terms=lambda epoch: {"nll": losses[epoch]})
        return run(module, out, smoothing=smoothing, **options).history["learning_rate"].tolist()

    # Plain: best in epoch 1, so lowered after epochs 3, 5 and 7. Smoothed by half: 4, 3, 3, 2.75, 2.575, 2.4375, 2.52, 2.61.
    assert rates(tmp_path / "plain", 0.0) == pytest.approx([0.1] * 4 + [0.05] * 2 + [0.025] * 2)
    assert rates(tmp_path / "smoothed", 0.5) == pytest.approx([0.1] * 8)


# ---------------------------------------------------------------------------------------------------------- resuming


class KilledError(Exception):
    pass


def script(fail_in=None):
    """Terms and losses that differ from epoch to epoch; in epoch `fail_in` the process dies."""
    losses = np.round(3 + np.random.default_rng(41).normal(size=30), 3)  # what is forgotten in a kill changes the end

    def train_terms(epoch, step):
        if epoch == fail_in and step == 2:
            raise KilledError
        return {"nll": 1 + 0.1 * epoch, "kl": 0.01 * (step + epoch)}

    return Scripted(train_terms, lambda epoch: {"nll": losses[epoch] - 0.1 * epoch, "kl": 0.1 * epoch})


SELECTIVE = {
    "max_epochs": 30,
    "smoothing": 0.8,
    "burn_in": 3,
    "patience": 7,
    "learning_rate": 0.1,
    "plateau": {"factor": 0.7, "patience": 1, "minimum": 0.001},
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out, module = tmp_path_factory.mktemp("undisturbed"), script()
    result = run(module, out, **SELECTIVE)
    assert result.best_epoch == 9
    assert result.history["valid_loss"][3:].idxmin() != 9  # smoothing decides
    assert len(result.history) == 17  # stopped early
    assert result.history["learning_rate"].nunique() > 2
    return out, module, result


@pytest.mark.parametrize("epoch", [2, 4, 8, 12])
def test_a_killed_run_goes_on_with_its_smoothed_loss_its_columns_and_its_terms(epoch, undisturbed, tmp_path, capsys):
    out, whole, expected = undisturbed
    first = script(fail_in=epoch)
    with pytest.raises(KilledError):
        run(first, tmp_path, **SELECTIVE)
    assert first.epochs == list(range(epoch + 1))
    second = script()
    result = run(second, tmp_path, **SELECTIVE)
    assert "continuing from" in capsys.readouterr().out
    assert second.epochs == list(range(epoch, len(expected.history)))
    assert (tmp_path / "history.csv").read_bytes() == (out / "history.csv").read_bytes()
    assert result.facts() == expected.facts()
    assert second.steps == whole.steps
    assert torch.equal(second.weight, whole.weight)


def test_a_finished_run_is_read_back_with_all_its_columns(undisturbed, tmp_path):
    out, whole, expected = undisturbed
    run(script(), tmp_path, **SELECTIVE)
    (tmp_path / "history.csv").unlink()
    again = script()
    result = run(again, tmp_path, **SELECTIVE)
    assert again.epochs == []
    assert again.steps == whole.steps
    assert (tmp_path / "history.csv").read_bytes() == (out / "history.csv").read_bytes()
    assert result.facts() == expected.facts()
    assert list(result.history) == [*FIRST_COLUMNS, "train_nll", "train_kl", "valid_nll", "valid_kl"]


def test_a_module_is_told_each_epoch_once_before_its_first_loss(undisturbed):
    _, whole, expected = undisturbed
    assert whole.epochs == expected.history["epoch"].tolist()


@pytest.mark.parametrize(
    "change", [{"smoothing": 0.7}, {"burn_in": 4}, {"optimizer": "adamw"}, {"epsilon": 1e-7}], ids=str
)
def test_a_run_with_other_settings_starts_afresh(change, undisturbed, tmp_path, capsys):
    with pytest.raises(KilledError):
        run(script(fail_in=4), tmp_path, **SELECTIVE)
    module = script()
    run(module, tmp_path, **(SELECTIVE | change))
    assert "starting afresh" in capsys.readouterr().out
    assert module.epochs[0] == 0


def test_sessions_of_other_values_or_names_are_another_run(tmp_path, capsys):
    data = {"a": measured_data(6, 0), "b": measured_data(5, 5)}

    def once(sessions):
        train(Measured(), SessionBatches(sessions, 4, 0), SessionBatches(sessions, 4), settings(), 0, tmp_path)
        return capsys.readouterr().out

    assert "starting afresh" not in once(data)
    assert "continuing from" in once(data)
    assert "starting afresh" in once({"a": data["a"], "c": data["b"]})
    changed = {"a": data["a"], "c": {**data["b"], "x": data["b"]["x"] + 1}}
    assert "starting afresh" in once(changed)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"burn_in": 6}, r"burn_in \(6\) must be below max_epochs \(6\)"),
        ({"burn_in": -1}, "greater than or equal to 0"),
        ({"smoothing": 1.0}, "less than 1"),
        ({"epsilon": 0.0}, "greater than 0"),
        ({"optimizer": "sgd"}, "'adam' or 'adamw'"),
    ],
    ids=str,
)
def test_settings_that_could_select_or_move_nothing_are_refused(options, expected):
    with pytest.raises(ValidationError, match=expected):
        settings(**options)
    settings(burn_in=5, smoothing=0.99)
