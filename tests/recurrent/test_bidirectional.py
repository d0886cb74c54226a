"""The encoder of both directions against loops over trials and bins in numpy."""

import numpy as np
import pytest
import torch

from ctdb.recurrent import Bidirectional, ClippedGRUCell, TanhCell, gru_summary, initialise

N_BINS = [9, 4, 1, 7, 0]


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_encoder(make_cell=lambda: TanhCell(3, 5)):
    encoder = Bidirectional(make_cell)
    initialise(encoder, torch.Generator().manual_seed(0))
    encoder.double()
    with torch.no_grad():
        encoder.initial += draw(2, encoder.initial.shape[1], seed=4)
    return encoder


def tanh_step(cell, u, h):
    w = {name: value.detach().numpy() for name, value in cell.state_dict().items()}
    return np.tanh(w["weight_ih"] @ u + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"])


def by_loops(encoder, inputs, n_bins):
    """Both directions, trial by trial; a state stays as it is outside the trial's bins."""
    n_trials, length, _ = inputs.shape
    ahead, back = np.empty((2, n_trials, length, 5))
    initial = encoder.initial.detach().numpy()
    for trial in range(n_trials):
        h = initial[0]
        for t in range(length):
            if t < n_bins[trial]:
                h = tanh_step(encoder.ahead, inputs[trial, t], h)
            ahead[trial, t] = h
        h = initial[1]
        for t in reversed(range(length)):
            if t < n_bins[trial]:
                h = tanh_step(encoder.back, inputs[trial, t], h)
            back[trial, t] = h
    return ahead, back


@pytest.mark.parametrize("padded", [False, True])
def test_states_of_both_directions_equal_loops(padded):
    encoder, inputs = make_encoder(), draw(5, 9, 3)
    found = encoder(inputs, torch.tensor(N_BINS)) if padded else encoder(inputs)
    expected = by_loops(encoder, inputs.numpy(), N_BINS if padded else [9] * 5)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.detach().numpy(), other, rtol=1e-12, atol=1e-13)
    summary = encoder.summary(inputs, torch.tensor(N_BINS)) if padded else encoder.summary(inputs)
    last = np.concatenate([expected[0][:, -1], expected[1][:, 0]], 1)
    np.testing.assert_allclose(summary.detach().numpy(), last, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("make_cell", [lambda: TanhCell(3, 5), lambda: ClippedGRUCell(3, 5, joint_fan=True)])
def test_a_padded_trial_is_summarised_as_if_it_were_cut_to_its_length(make_cell):
    encoder, inputs = make_encoder(make_cell), draw(4, 9, 3)
    padded = inputs.clone()
    for trial, length in enumerate(N_BINS[:4]):
        padded[trial, length:] = 100.0
    ahead, back = encoder(padded, torch.tensor(N_BINS[:4]))
    summary = encoder.summary(padded, torch.tensor(N_BINS[:4]))
    torch.testing.assert_close(summary, torch.cat([ahead[:, -1], back[:, 0]], 1), rtol=1e-12, atol=1e-13)
    for trial, length in enumerate(N_BINS[:4]):
        cut_ahead, cut_back = encoder(inputs[trial : trial + 1, :length])
        torch.testing.assert_close(ahead[trial, -1], cut_ahead[0, -1], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(back[trial, 0], cut_back[0, 0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ahead[trial, :length], cut_ahead[0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(back[trial, :length], cut_back[0], rtol=1e-12, atol=1e-13)


def test_initial_states_start_at_zero_and_each_is_learned_from_its_own_direction():
    fresh = Bidirectional(lambda: TanhCell(3, 5))
    initialise(fresh, torch.Generator().manual_seed(0))
    assert fresh.initial.shape == (2, 5)
    assert (fresh.initial == 0).all()
    encoder, inputs = make_encoder(), draw(2, 4, 3)
    for direction in (0, 1):
        encoder.zero_grad()
        encoder(inputs)[direction].sum().backward()
        assert encoder.initial.grad[direction].abs().min() > 0
        assert (encoder.initial.grad[1 - direction] == 0).all()


def test_gradients_of_the_encoder_equal_finite_differences():
    encoder = make_encoder(lambda: ClippedGRUCell(3, 5, joint_fan=True))
    inputs, initial = draw(3, 4, 3).requires_grad_(), encoder.initial.detach().clone().requires_grad_()

    def run(u, initial):
        return torch.func.functional_call(encoder, {"initial": initial}, (u, torch.tensor([4, 1, 2])))

    assert torch.autograd.gradcheck(run, (inputs, initial), eps=1e-6, atol=1e-6)

    class Summary(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder

        def forward(self, *given):
            return self.encoder.summary(*given)

    def summarise(u, initial):
        return torch.func.functional_call(Summary(), {"encoder.initial": initial}, (u, torch.tensor([4, 1, 2])))

    assert torch.autograd.gradcheck(summarise, (inputs, initial), eps=1e-6, atol=1e-6)


def test_both_directions_have_cells_of_their_own():
    encoder = make_encoder()
    assert encoder.ahead is not encoder.back
    assert not torch.equal(encoder.ahead.weight_ih, encoder.back.weight_ih)


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("n_bins", [None, [9, 4, 1, 7, 2]], ids=["whole", "padded"])
def test_under_vmap_torch_s_gru_is_the_same_loop(n_bins):
    grus = [torch.nn.GRU(3, 4, batch_first=True, bidirectional=True).double() for _ in range(3)]
    for seed, gru in enumerate(grus):
        for parameter in gru.parameters():
            torch.nn.init.uniform_(parameter, -0.7, 0.7, generator=torch.Generator().manual_seed(seed))
    inputs, lengths = draw(3, 5, 9, 3), None if n_bins is None else torch.tensor(n_bins)
    stacked, _ = torch.func.stack_module_state(grus)

    def summary(weights, own):
        gru, previous = grus[0], grus[0].forward
        gru.forward = lambda given: gru_summary(gru, given, lengths)
        try:
            return torch.func.functional_call(gru, weights, (own,))
        finally:
            gru.forward = previous

    found = torch.vmap(summary)(stacked, inputs)
    expected = torch.stack([gru_summary(gru, own, lengths) for gru, own in zip(grus, inputs, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    ours = torch.autograd.grad(found.square().sum(), list(stacked.values()))
    for name, gradient in zip(stacked, ours, strict=True):
        each = [torch.autograd.grad(one.square().sum(), gru.get_parameter(name), retain_graph=True)[0] for gru, one in zip(grus, expected, strict=True)]  # fmt: skip
        torch.testing.assert_close(gradient, torch.stack(each), rtol=1e-10, atol=1e-12)
    assert all(found[:, trial].std() > 0 for trial in range(5))
