"""Recurrent loops in torch with hand-written backward passes: any device and precision, no compiler.

Input projections are taken out of the loop, autograd records nothing inside it, and weight gradients are one product
over all bins at the end.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from ctdb.recurrent.eager import Generated, Linear, Scanned
from ctdb.recurrent.functions import CellGradients, CellWeights, ControlledCall, PoissonCall, ScanCall


class _Cell:
    """One cell, forward and back. `sums` are the gates before their nonlinearity, `kept` what the way back needs."""

    def __init__(self, weights: CellWeights):
        self.w, self.n = weights, weights.n_states
        self.reset_first = weights.kind == "clipped_gru"

    def project(self, inputs: Tensor) -> Tensor:
        """Part of the sums that comes from the inputs, for any number of leading axes."""
        bias = self.w.b_in
        if self.w.b_rec is not None and self.w.kind != "gru":
            bias = self.w.b_rec if bias is None else bias + self.w.b_rec
        return linear(inputs, self.w.w_in, bias)

    def forward(self, sums: Tensor, h: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        w, n = self.w, self.n
        if w.kind == "rate":
            a = _ACT[w.activation](torch.addmm(sums, h, w.w_rec.T))
            return (a if w.leak == 1 else h + w.leak * (a - h)), (a,)
        if self.reset_first:
            z, r = torch.addmm(sums[:, : 2 * n], h, w.w_rec[: 2 * n].T).sigmoid_().chunk(2, 1)
            fresh = torch.addmm(sums[:, 2 * n :], r * h, w.w_rec[2 * n :].T).tanh_()
            return torch.lerp(fresh, h, z).clamp_(-w.clip, w.clip), (z, r, fresh)
        recurrent = linear(h, w.w_rec, w.b_rec)
        r, z = (sums[:, : 2 * n] + recurrent[:, : 2 * n]).sigmoid_().chunk(2, 1)
        inner = recurrent[:, 2 * n :]
        fresh = torch.addcmul(sums[:, 2 * n :], r, inner).tanh_()
        return torch.lerp(fresh, h, z), (r, z, fresh, inner)

    def backward(self, d: Tensor, h: Tensor, kept: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of the sums, of the state before, and of the recurrent sums where they differ."""
        w, n = self.w, self.n
        if w.kind == "rate":
            d_sums = w.leak * d * _SLOPE[w.activation](kept[0])
            before = d_sums @ w.w_rec
            return d_sums, (before if w.leak == 1 else before + (1 - w.leak) * d), None
        if self.reset_first:
            z, r, fresh = kept
            following = torch.lerp(fresh, h, z)
            d = torch.where(following.abs() > w.clip, 0, d)
            d_new = d * (1 - z) * (1 - fresh * fresh)
            d_reset = d_new @ w.w_rec[2 * n :]
            d_gates = torch.cat([d * (h - fresh) * z * (1 - z), d_reset * h * r * (1 - r)], 1)
            before = torch.addmm(d * z + d_reset * r, d_gates, w.w_rec[: 2 * n])
            return torch.cat([d_gates, d_new], 1), before, None
        r, z, fresh, inner = kept
        d_new = d * (1 - z) * (1 - fresh * fresh)
        d_gates = torch.cat([d_new * inner * r * (1 - r), d * (h - fresh) * z * (1 - z)], 1)
        recurrent = torch.cat([d_gates, d_new * r], 1)
        return torch.cat([d_gates, d_new], 1), torch.addmm(d * z, recurrent, w.w_rec), recurrent

    def gradients(
        self,
        inputs: Tensor,
        before: Tensor,
        kept: tuple[Tensor, ...],
        d_sums: Tensor,
        d_recurrent: Tensor | None,
    ) -> CellGradients:
        """Gradients of the weights from everything stacked over bins, (bins, trials, channels)."""
        n = self.n
        flat = d_sums.flatten(0, 1)
        w_in, bias = flat.T @ inputs.flatten(0, 1), flat.sum(0)
        if self.reset_first:
            reset = (kept[1] * before).flatten(0, 1)
            w_rec = torch.cat([flat[:, : 2 * n].T @ before.flatten(0, 1), flat[:, 2 * n :].T @ reset])
            rec_bias = bias
        else:
            rec = flat if d_recurrent is None else d_recurrent.flatten(0, 1)
            w_rec, rec_bias = rec.T @ before.flatten(0, 1), rec.sum(0)
        return CellGradients(
            w_in, w_rec, None if self.w.b_in is None else bias, None if self.w.b_rec is None else rec_bias
        )


_ACT = {"tanh": torch.tanh, "relu": torch.relu, "softplus": softplus}
_SLOPE = {
    "tanh": lambda y: 1 - y * y,
    "relu": lambda y: (y > 0).to(y.dtype),
    "softplus": lambda y: -torch.expm1(-y),
}


class TorchKernels:
    """See :class:`ctdb.recurrent.functions.Kernels`."""

    def scan(self, call: ScanCall) -> tuple[Scanned, Any]:
        """Forward."""
        cell, n_bins = _Cell(call.cell), call.inputs.shape[1]
        sums = cell.project(call.inputs.transpose(0, 1))
        kicks = None if call.noise is None else call.noise.tensor(n_bins, call.cell.n_states, call.start).unbind(1)
        h, before, kept, clean, states = call.start, [None] * n_bins, [None] * n_bins, [None] * n_bins, [None] * n_bins
        for t in _order(call, n_bins):
            following, gates = cell.forward(sums[t], h)
            if call.keeps:
                before[t], kept[t] = h, gates
            clean[t] = following
            if kicks is not None:
                following = following + kicks[t]
            h = following if call.valid is None else torch.where(call.valid[:, t, None], following, h)
            states[t] = h
        outputs = None if call.readout is None else call.readout(torch.stack(clean, 1))
        made = Scanned(torch.stack(states, 1) if call.states else None, h.clone(), outputs)
        return made, (before, kept, clean if call.readout is not None else None) if call.keeps else None

    def scan_backward(self, call: ScanCall, kept: Any, grads: Scanned, wants_inputs: bool) -> dict[str, Any]:
        """Gradients of a scan."""
        cell, n_bins = _Cell(call.cell), call.inputs.shape[1]
        before, gates, clean = kept
        d = torch.zeros_like(call.start) if grads.last is None else grads.last
        d_read = None if grads.outputs is None else grads.outputs @ call.readout.weight
        d_sums, d_recurrent = [None] * n_bins, [None] * n_bins
        for t in reversed(_order(call, n_bins)):
            if grads.states is not None:
                d = d + grads.states[:, t]
            held = None
            if call.valid is not None:
                held, d = torch.where(call.valid[:, t, None], 0, d), torch.where(call.valid[:, t, None], d, 0)
            if d_read is not None:
                d = d + d_read[:, t]
            d_sums[t], d, d_recurrent[t] = cell.backward(d, before[t], gates[t])
            if held is not None:
                d = d + held
        whole = torch.stack(d_sums)
        stacked = tuple(torch.stack(column) for column in zip(*gates, strict=True))
        recurrent = None if d_recurrent[0] is None else torch.stack(d_recurrent)
        made = {
            "start": d,
            "cell": cell.gradients(call.inputs.transpose(0, 1), torch.stack(before), stacked, whole, recurrent),
        }
        if wants_inputs:
            made["inputs"] = (whole @ call.cell.w_in).transpose(0, 1)
        if call.readout is not None:
            zero = [torch.zeros_like(value) for value in call.readout]
            flat = None if grads.outputs is None else grads.outputs.flatten(0, 1)
            made["readout"] = zero if flat is None else [flat.T @ torch.stack(clean, 1).flatten(0, 1), flat.sum(0)]
        return made

    def controlled(self, call: ControlledCall) -> tuple[Generated, Any]:
        """Forward."""
        gen, n_bins = _Cell(call.generator), call.ext_input.shape[1]
        drop = _drop(call)
        rows, kept = [], []
        if call.controller is None:
            sums = gen.project(call.ext_input.transpose(0, 1))
            h = call.start
            for t in range(n_bins):
                following, gates = gen.forward(sums[t], h)
                kept.append((h, gates))
                rows.append(h := following)
            states = torch.stack(rows, 1)
            seen = states if drop[3] is None else states * drop[3]
            none = states.new_zeros(*states.shape[:2], 0)
            factors = linear(seen, call.to_factors)
            # what autograd gets must not be what it was given
            made = Generated(states, factors, call.ext_input.clone(), none, none.clone(), none.clone())
            return made, (kept, seen) if call.keeps else None
        con = _Cell(call.controller)
        h, c = call.start, call.con_start
        ci = call.ci if drop[1] is None else call.ci * drop[1]
        start = h if drop[0] is None else h * drop[0]
        fac = linear(start, call.to_factors)
        for t in range(n_bins):
            x = torch.cat([ci[:, t], fac if drop[2] is None else fac * drop[2][:, t]], 1)
            c_next, c_gates = con.forward(con.project(x), c)
            mean, log_variance = call.to_co(c_next).chunk(2, 1)
            std = (0.5 * log_variance).exp_()
            inferred = mean if call.co_noise is None else torch.addcmul(mean, std, call.co_noise[:, t])
            if call.control is not None:
                inferred = inferred * call.control[t]
            u = torch.cat([inferred, call.ext_input[:, t]], 1)
            following, gates = gen.forward(gen.project(u), h)
            seen = following if drop[3] is None else following * drop[3][:, t]
            fac = linear(seen, call.to_factors)
            kept.append((h, gates, c, c_gates, x, u, c_next, std, seen))
            h, c = following, c_next
            rows.append((h, fac, u, c, mean, std))
        made = Generated(*(torch.stack(column, 1) for column in zip(*rows, strict=True)))
        return made, (kept, start) if call.keeps else None

    def controlled_backward(self, call: ControlledCall, kept: Any, grads: Generated, wants: set[str]) -> dict[str, Any]:
        """Gradients of a controlled scan."""
        rows, seen_or_start = kept
        gen, n_bins, drop = _Cell(call.generator), call.ext_input.shape[1], _drop(call)
        d = torch.zeros_like(call.start)
        gen_d, gen_rec = [None] * n_bins, [None] * n_bins
        if call.controller is None:
            d_seen = None if grads.factors is None else grads.factors @ call.to_factors
            if d_seen is not None and drop[3] is not None:
                d_seen = d_seen * drop[3]
            for t in reversed(range(n_bins)):
                for part in (d_seen, grads.gen_states):
                    d = d if part is None else d + part[:, t]
                gen_d[t], d, gen_rec[t] = gen.backward(d, *rows[t])
            whole = torch.stack(gen_d)
            made = {"start": d, "generator": _stacked(gen, call.ext_input.transpose(0, 1), rows, 0, whole, gen_rec)}
            flat = None if grads.factors is None else grads.factors.flatten(0, 1)
            made["to_factors"] = (
                torch.zeros_like(call.to_factors) if flat is None else flat.T @ seen_or_start.flatten(0, 1)
            )
            if "ext_input" in wants:
                made["ext_input"] = (whole @ call.generator.w_in).transpose(0, 1)
                if grads.gen_inputs is not None:
                    made["ext_input"] = made["ext_input"] + grads.gen_inputs
            return made
        con, n_co, n_ci = _Cell(call.controller), len(call.to_co.bias) // 2, call.ci.shape[2]
        d_con = torch.zeros_like(call.con_start)
        d_fac = d.new_zeros(len(d), len(call.to_factors))
        d_facs, con_d, con_rec, d_params = ([None] * n_bins for _ in range(4))
        d_ext, d_ci = [None] * n_bins, [None] * n_bins
        for t in reversed(range(n_bins)):
            h, gates, c, c_gates, _, _, _, std, _ = rows[t]
            if grads.factors is not None:
                d_fac = d_fac + grads.factors[:, t]
            d_facs[t] = d_fac
            d_seen = d_fac @ call.to_factors
            d = d + (d_seen if drop[3] is None else d_seen * drop[3][:, t])
            if grads.gen_states is not None:
                d = d + grads.gen_states[:, t]
            gen_d[t], d, gen_rec[t] = gen.backward(d, h, gates)
            du = gen_d[t] @ call.generator.w_in
            if grads.gen_inputs is not None:
                du = du + grads.gen_inputs[:, t]
            d_ext[t] = du[:, n_co:]
            d_mean = du[:, :n_co] if call.control is None else du[:, :n_co] * call.control[t]
            d_std = torch.zeros_like(std) if call.co_noise is None else d_mean * call.co_noise[:, t]
            if grads.co_means is not None:
                d_mean = d_mean + grads.co_means[:, t]
            if grads.co_stds is not None:
                d_std = d_std + grads.co_stds[:, t]
            d_params[t] = torch.cat([d_mean, 0.5 * std * d_std], 1)
            d_con = torch.addmm(d_con, d_params[t], call.to_co.weight)
            if grads.con_states is not None:
                d_con = d_con + grads.con_states[:, t]
            con_d[t], d_con, con_rec[t] = con.backward(d_con, c, c_gates)
            dx = con_d[t] @ call.controller.w_in
            d_ci[t], d_fac = dx[:, :n_ci], dx[:, n_ci:]
            if drop[2] is not None:
                d_fac = d_fac * drop[2][:, t]
        d_start = d_fac @ call.to_factors
        flat = torch.cat([d_fac, *d_facs])
        made = {
            "start": d + (d_start if drop[0] is None else d_start * drop[0]),
            "con_start": d_con,
            "to_factors": flat.T @ torch.cat([seen_or_start, *[row[8] for row in rows]]),
            "generator": _stacked(gen, torch.stack([row[5] for row in rows]), rows, 0, torch.stack(gen_d), gen_rec),
            "controller": _stacked(con, torch.stack([row[4] for row in rows]), rows, 2, torch.stack(con_d), con_rec),
        }
        params = torch.cat(d_params)
        made["to_co"] = Linear(params.T @ torch.cat([row[6] for row in rows]), params.sum(0))
        if "ext_input" in wants:
            made["ext_input"] = torch.stack(d_ext, 1)
        if "ci" in wants:
            made["ci"] = torch.stack(d_ci, 1)
            if drop[1] is not None:
                made["ci"] = made["ci"] * drop[1]
        return made

    def poisson(self, call: PoissonCall) -> tuple[Tensor, Any]:
        """Sum, and its gradients."""
        counts = torch.where(call.weight > 0, call.counts.to(call.factors.dtype), 0)
        # Where nothing weighs, a rate may be beyond all numbers: 0 times that would be NaN.
        log_rates = torch.where(call.weight > 0, call.readout(call.factors), 0)
        error = log_rates.exp()
        total = (call.weight * (error - counts * log_rates + torch.lgamma(counts + 1))).sum()
        if not call.keeps:
            return total, [None] * 3
        error = (error - counts) * call.weight
        if call.learned is not None:
            error = error * call.learned
        flat = error.flatten(0, 1)
        return total, [error @ call.readout.weight, flat.T @ call.factors.flatten(0, 1), flat.sum(0)]


def _order(call: ScanCall, n_bins: int) -> list[int]:
    order = list(range(n_bins))
    return order[::-1] if call.reverse else order


def _drop(call: ControlledCall) -> list[Tensor | None]:
    if call.kept is None:
        return [None] * 4
    return [None if mask is None else mask.to(call.start) * call.kept.scale for mask in call.kept[:4]]


def _stacked(
    cell: _Cell, inputs: Tensor, rows: list[Any], first: int, d_sums: Tensor, d_recurrent: list[Tensor | None]
) -> CellGradients:
    """Gradients of a cell's weights from what was kept of each bin: the state before at `first`, then the gates."""
    before = torch.stack([row[first] for row in rows])
    kept = tuple(torch.stack(column) for column in zip(*[row[first + 1] for row in rows], strict=True))
    return cell.gradients(inputs, before, kept, d_sums, None if d_recurrent[0] is None else torch.stack(d_recurrent))
