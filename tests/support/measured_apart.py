"""The numbers of the diagnosis measured a second time, with plain torch loops and autograd alone.

Nothing of the package is used here but its thresholds' definitions, written out again.
"""

import math

import torch


def plain_loop(layer, x, truncated=False, held=math.inf):
    """Run a single torch layer step by step, with a copy of its weights for each step.

    `held` is the largest norm that the adjoint of a sample's state may go on with at a step.

    Returns h [T, B, H], the states of every step, the activations [T, B, H] by name, the copies.
    """
    kind = type(layer).__name__
    h = c = x.new_zeros(x.shape[1], layer.hidden_size)
    outputs, states, gates, copies = [], [], {}, []
    for x_k in x:
        w = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
        copies.append(w)
        seen = h.detach() if truncated else h
        a = x_k @ w["weight_ih_l0"].T + w.get("bias_ih_l0", 0)
        b = seen @ w["weight_hh_l0"].T + w.get("bias_hh_l0", 0)
        if kind == "LSTM":
            i, f, g, o = (a + b).chunk(4, -1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            c = f * c + i * g
            h = o * c.tanh()
            now = {"input": i, "forget": f, "cell": g, "output": o, "squashed": c.tanh()}
            c = c.clone()  # as handed on: its gradient without what comes through h of this step
            state = (h, c)
        elif kind == "GRU":
            (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, -1), b.chunk(3, -1)
            r, z = (a_r + b_r).sigmoid(), (a_z + b_z).sigmoid()
            n = (a_n + r * b_n).tanh()
            h = (1 - z) * n + z * h
            now, state = {"reset": r, "update": z, "candidate": n}, (h,)
        else:
            h = getattr(a + b, layer.nonlinearity)()
            now, state = {"hidden": h}, (h,)
        if held < math.inf:
            whole = torch.cat(state, -1)
            whole.register_hook(lambda g: g * (held / g.norm(dim=-1, keepdim=True)).clamp(max=1))
            state = whole.split(layer.hidden_size, -1)
            h, c = state[0], state[-1]
        for part in state:
            part.retain_grad()
        outputs.append(h)
        states.append(state)
        for name, value in now.items():
            gates.setdefault(name, []).append(value.detach())
    return torch.stack(outputs), states, {n: torch.stack(v) for n, v in gates.items()}, copies


class Measured:
    """The numbers of a model whose loss enters at the last step alone."""

    def __init__(self, model, batch, **backward):
        x, y = batch
        self.weights = [p.detach() for p in model.recurrent.parameters()]
        self.head_weights = [p.detach() for p in model.head.parameters()]
        h, states, self.gates, copies = plain_loop(model.recurrent, x, **backward)
        self.h = h.detach()
        model.head.zero_grad()
        (model.head(h[-1]) - y).square().mean().backward()
        steps = len(x)
        weights = [[w.grad for w in of_step.values()] for of_step in copies]
        # Contributions of the last entry by lag, and the adjoint of the state by lag.
        self.contributions = [_norm(weights[steps - 1 - lag]) for lag in range(steps)]
        self.adjoints = [
            _norm([part.grad for part in states[steps - 1 - lag]]) for lag in range(steps)
        ]
        self.gradient = {name: sum(of_step[name].grad for of_step in copies) for name in copies[0]}
        self.head = {name: p.grad.clone() for name, p in model.head.named_parameters()}

    def reach(self):
        floor = self.contributions[0] / 100
        return max(lag for lag, size in enumerate(self.contributions) if size >= floor)

    def growth_of_the_adjoint(self):
        return math.log2(max(self.adjoints[1:]) / self.adjoints[0])

    def time_constant(self):
        keeping = self.gates["forget" if "forget" in self.gates else "update"]
        constants = 1 / (1 - keeping.double().mean((0, 1)))
        return float(constants.quantile(0.9))

    def saturated_share(self):
        keeping = self.gates.get("forget", self.gates.get("update"))
        holds = torch.zeros_like(self.h).bool() if keeping is None else keeping > 0.99
        shares = []
        for name, value in self.gates.items():
            sigmoid = name in ("input", "forget", "output", "reset", "update")
            slope = 4 * value * (1 - value) if sigmoid else 1 - value.square()
            flat = slope < 0.04
            shares.append(flat & ~holds if name in ("input", "forget", "update") else flat)
        return max(float(share.float().mean()) for share in shares)

    def dead_units(self):
        moved = self.h.amax((0, 1)) - self.h.amin((0, 1))
        return float((moved <= 1e-6 * self.h.abs().max()).float().mean())

    def imbalance(self, clipped_to=math.inf):
        sizes = []
        for gradients, part in ((self.head, self.head_weights), (self.gradient, self.weights)):
            clip = min(1.0, clipped_to / (_norm(gradients.values()) + 1e-6))  # as torch does
            sizes.append(clip * _norm(_matrices(gradients.values())) / _norm(_matrices(part)))
        return 1.0 - math.log10(sizes[0] / sizes[1])

    def norms(self):
        return _norm(self.head.values()), _norm(self.gradient.values())


def _matrices(tensors):
    return [tensor for tensor in tensors if tensor.ndim > 1]


def _norm(tensors):
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors if t is not None))
