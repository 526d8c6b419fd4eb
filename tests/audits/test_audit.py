"""Mistakes planted in a kernel with a backward pass of its own, found and named by the audit."""

import math
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.scan import scan

import retrograde
from retrograde import Declaration
from retrograde.audits import Audit, Check
from retrograde.audits.bands import allowed, verdict
from retrograde.audits.smallest import fewest
from retrograde.cells import LSTM, Elman, MinGRU
from retrograde.cli import main
from retrograde.report.audit_page import TITLES

T, B, I, H = 5, 3, 2, 3  # noqa: E741


class Kernel(torch.autograd.Function):
    """An LSTM with peepholes of i, f and o, forward and backward by hand, with a fault or none."""

    @staticmethod
    def forward(ctx, x, h0, c0, w, r, b, p, lengths, fault):
        h, c, kept, outputs = h0, c0, [], []
        p_i, p_f, p_o = p.chunk(3)
        for k, x_k in enumerate(x):
            a = x_k @ w.T + h @ r.T + (0 if fault == "no bias" else b)
            if fault == "half forward":
                a = a.half().to(a)
            a_i, a_f, a_g, a_o = a.chunk(4, 1)
            if fault == "swapped gates forward":
                a_i, a_f = a_f, a_i
            i, f = torch.sigmoid(a_i + p_i * c), torch.sigmoid(a_f + p_f * c)
            g = torch.tanh(a_g)
            new = f * c + i * g
            o = torch.sigmoid(a_o + (0 if fault == "no peephole" else p_o * new))
            there = k < lengths + (fault == "late mask")
            mask = there.unsqueeze(1).to(x)
            kept.append((h, c, i, f, g, o, new, mask))
            h = mask * o * torch.tanh(new) + (1 - mask) * h
            c = new if fault == "half mask" else mask * new + (1 - mask) * c
            outputs.append(h)
        ctx.save_for_backward(x, w, r, b, p)
        ctx.kept, ctx.fault = kept, fault
        return torch.stack(outputs), h, c

    @staticmethod
    def backward(ctx, dy, dh, dc):
        (x, w, r, b, p), fault = ctx.saved_tensors, ctx.fault
        p_i, p_f, p_o = p.chunk(3)
        dx = torch.zeros_like(x)
        dw, dr, db, dp = (torch.zeros_like(each) for each in (w, r, b, p))
        if fault == "no dc of the last state":
            dc = torch.zeros_like(dc)
        if fault == "no dh of the last state":
            dh = torch.zeros_like(dh)
        if fault == "only the last output":
            dy = torch.cat((torch.zeros_like(dy[:-1]), dy[-1:]))
        for k in reversed(range(len(x))):
            h, c, i, f, g, o, new, mask = ctx.kept[k]
            dh = dh + dy[k]
            passed_h, passed_c = (1 - mask) * dh, (1 - mask) * dc
            dh, dc = mask * dh, mask * dc
            tanh = torch.tanh(new)
            da_o = dh * tanh * o * (1 - o)
            slope = 1 if fault == "no slope of tanh" else 1 - tanh * tanh
            dc = dc + dh * o * slope
            if fault != "no peephole back":
                dc = dc + da_o * p_o
            da_i, da_f = dc * g * i * (1 - i), dc * c * f * (1 - f)
            da_g = dc * i * (1 - g * g)
            if fault == "sign":
                da_f = -da_f
            if fault == "forget gate times new":
                da_f = dc * new * f * (1 - f)
            da = torch.cat((da_i, da_f, da_g, da_o), 1)
            if fault == "swapped gates":
                da = torch.cat((da_f, da_i, da_g, da_o), 1)
            into = da.half().to(da) if fault == "half accumulation" else da
            if fault != "first step left out" or k:
                dw += into.T @ x[k]
                dr += into.T @ (o * tanh if fault == "h too late" else h)
                if fault != "bias once" or k == len(x) - 1:
                    db += into.sum(0)
            dp += torch.cat(((da_i * c).sum(0), (da_f * c).sum(0), (da_o * new).sum(0)))
            seen = da.clone()
            for number, gate in enumerate(("input", "forget", "cell", "output")):
                if fault == f"no recurrent.{gate}":
                    seen.chunk(4, 1)[number].zero_()
            rest = 3 * len(b) // 4
            dx[k] = da[:, :rest] @ w[:rest] if fault == "dx without output" else da @ w
            dh, dc = seen @ r, dc * f + da_f * p_f + da_i * p_i
            if fault == "no carousel":
                dc = dc - dc.detach() + da_f * p_f + da_i * p_i
            if fault == "no peephole.forget":
                dc = dc - da_f * p_f
            if fault == "no carry" or (fault == "window of 2" and k == len(x) - 2):
                dh, dc = torch.zeros_like(dh), torch.zeros_like(dc)
            if fault == "overflow" and len(x) - k > 3:
                dh = dh * torch.inf
            dh, dc = dh + passed_h, dc + passed_c
        if fault == "mean over the batch":
            dw, dr, db, dp = (each / len(dh) for each in (dw, dr, db, dp))
        if fault == "stale weight":
            dr = None
        if fault == "no gradient of the start":
            dh, dc = torch.zeros_like(dh), torch.zeros_like(dc)
        return dx, dh, dc, dw, dr, db, dp, None, None


class Layer(nn.Module):
    batch_first = False

    def __init__(self, fault="", inputs=I, hidden=H):
        super().__init__()
        self.fault, self.hidden_size = fault, hidden
        torch.manual_seed(0)
        shapes = {"w": (4 * hidden, inputs), "r": (4 * hidden, hidden)}
        for name, shape in (shapes | {"b": (4 * hidden,), "p": (3 * hidden,)}).items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, x, state=None, lengths=None):
        h, c = state if state is not None else (x.new_zeros(x.shape[1], self.hidden_size),) * 2
        lengths = torch.full(x.shape[1:2], len(x)) if lengths is None else lengths
        out, h, c = Kernel.apply(x, h, c, self.w, self.r, self.b, self.p, lengths, self.fault)
        return out, (h, c)


def cell(module, w):
    return LSTM(w["w"], w["r"], w["b"], None, w["p"], generation="lstm-2002")


def audited(fault, ragged=False, scale=1.0, sizes=(T, B, I, H), **how):
    lengths = "lengths" if ragged else None
    declared = Declaration(cell=cell, state=("h", "c"), lengths=lengths)
    generator = torch.Generator().manual_seed(1)
    steps, batch, inputs, hidden = sizes
    x = scale * torch.randn(steps, batch, inputs, generator=generator)
    state = tuple(torch.randn(batch, hidden, generator=generator) for _ in range(2))
    more = {"lengths": torch.tensor([T, 3, 2])} if ragged else {}

    def loss(model, batch):
        return model(*batch, **more)[0].square().sum()

    return retrograde.audit(
        Layer(fault, inputs, hidden), (x, state), loss, cells={Layer: declared}, **how
    )


# fault: (a quantity that differs, the step it is told for or None for any, words of the route)
FAULTS = {
    "no dc of the last state": ("w", None, "c of the last state were dropped"),
    "no dh of the last state": ("w", None, "h of the last state were dropped"),
    "only the last output": ("w", None, "entered at the last step alone"),
    "no carousel": ("r", T - 2, "route carousel were missing"),
    "no recurrent.input": ("r", T - 2, "route recurrent.input were missing"),
    "no recurrent.forget": ("r", T - 2, "route recurrent.forget were missing"),
    "no recurrent.cell": ("r", T - 2, "route recurrent.cell were missing"),
    "no recurrent.output": ("r", T - 2, "route recurrent.output were missing"),
    "no peephole.forget": ("p", T - 2, "route peephole.forget were missing"),
    "no peephole back": ("p", T - 1, "route peephole.output were missing"),
    "no carry": ("w", T - 2, "ended after 1 step"),
    "window of 2": ("w", T - 3, ""),
    "no slope of tanh": ("w", T - 1, ""),
    "sign": ("b", T - 1, ""),
    "forget gate times new": ("b", T - 1, ""),
    "swapped gates": ("b", T - 1, ""),
    "half accumulation": ("w", None, ""),
    "first step left out": ("w", None, ""),
    "h too late": ("r", None, ""),
    "bias once": ("b", None, ""),
    "dx without output": ("dL/dx", T - 1, ""),
    "stale weight": ("r", None, "nothing comes back to it"),
    "no gradient of the start": ("dL/d initial state", None, "nothing comes back to it"),
    "mean over the batch": ("w", None, "0.3333 times what it should be"),
    "swapped gates forward": ("its outputs", 0, "forward pass differs"),
    "no bias": ("its outputs", 0, "forward pass differs"),
    "no peephole": ("its outputs", 0, "forward pass differs"),
    "half forward": ("its outputs", 0, "forward pass differs"),
    "overflow": ("w", None, ""),
}
ALONE = {
    "dx without output": ("dL/dx",),
    "stale weight": ("r",),
    "h too late": ("r",),
    "bias once": ("b",),
    "no gradient of the start": ("dL/d initial state",),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named(fault):
    what, step, words = FAULTS[fault]
    audit = audited(fault)
    assert not audit.ok and {d.precision for d in audit.differences} == {"float64", "float32"}
    first = audit.differences[0]
    assert what in first.parameters and words in first.looks_like, first
    assert step is None or first.step == step, first
    assert fault not in ALONE or first.parameters == ALONE[fault]


@pytest.mark.parametrize("fault", ["late mask", "half mask"])
def test_a_fault_of_masks_is_named(fault):
    assert audited("", ragged=True).ok
    audit = audited(fault, ragged=True)
    assert not audit.ok and "its last state" in audit.differences[0].parameters


def test_the_smallest_case_is_found():
    assert audited("no carry").differences[0].smallest == (1, 1)  # it shows in the initial state
    assert audited("first step left out").differences[0].smallest == (1, 1)
    assert audited("sign").differences[0].smallest == (1, 1)
    overflow = audited("overflow", sizes=(T, B, 3, 5)).differences[0]
    assert overflow.smallest == (4, 1) and overflow.widths == (1, 1)
    assert re.search(r"\[.*\] is (nan|inf|-inf) where .* is right", overflow.entry)
    assert audited("mean over the batch").differences[0].smallest == (1, 2)


@pytest.mark.parametrize(("most", "least"), [(1, 1), (2, 1), (5, 5), (8, 3), (100, 37), (9, 9)])
def test_the_fewest_are_looked_for_in_few_trials(most, least):
    tried = []
    assert fewest(most, lambda count: tried.append(count) or count >= least) == least
    assert len(tried) <= 16 and most not in tried


def test_correct_implementations_pass_at_every_length():
    audit = audited("", lengths=(1, 3, 40))
    assert audit.ok and {check.steps for check in audit.checks} == {1, 2, 3, T, 40}
    assert {check.verdict for check in audit.checks} == {"rounding"}
    x = torch.randn(B, T, I, generator=torch.Generator().manual_seed(1))
    for model in (
        nn.LSTM(I, H, num_layers=2, bidirectional=True, batch_first=True),
        nn.GRU(I, H, batch_first=True),
        retrograde.nn.LSTM(I, H, batch_first=True, generation="peephole"),
    ):
        for mkldnn in (True, False):
            with torch.backends.mkldnn.flags(enabled=mkldnn, allow_tf32=None):
                found = retrograde.audit(
                    model, x, lambda m, x: m(x)[0].square().sum(), lengths=(30,)
                )
            assert found.ok and {c.verdict for c in found.checks} == {"rounding"}, str(found)


def scaled(kind, weights=1.0):
    torch.manual_seed(0)
    layer = kind(I, H)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= weights
    return layer


RIGHT = {
    "rnn": nn.RNN,
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "projected": lambda i, h: nn.LSTM(i, h + 1, proj_size=h),
    "peepholes": lambda i, h: retrograde.nn.LSTM(i, h, generation="peephole"),
    "min-lstm": retrograde.nn.MinLSTM,
    "lru": retrograde.nn.LRU,
    "selective": retrograde.nn.SelectiveScan,
    "attention": lambda i, h: retrograde.nn.GatedLinearAttention(i, h, key_size=2),
    "mlstm": lambda i, h: retrograde.nn.MLSTM(i, h, key_size=2),
    "slstm": retrograde.nn.SLSTM,
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")
@settings(max_examples=4)
@given(
    scale=st.sampled_from((1e-42, 1e-30, 1.0, 40.0, 400.0, 1e4, 1e20)),
    weights=st.sampled_from((1.0, 1.0, 0.01, 30.0)),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16, torch.float16)),
    steps=st.integers(1, 5),
)
def test_nothing_right_is_blamed_at_any_scale(name, scale, weights, dtype, steps):
    """Where units are saturated or numbers leave the range, it cannot be told; that is no fault."""
    dtype = dtype if name in ("rnn", "gru", "lstm") else torch.float32
    layer = scaled(RIGHT[name], weights).to(dtype)
    x = torch.randn(steps, 2, I, generator=torch.Generator().manual_seed(steps))
    x = (scale * x).clamp(-6e4, 6e4).to(dtype)
    found = retrograde.audit(layer, x, summed)
    assert found.ok, str(found)


@pytest.mark.parametrize("bias", [-88.0, -92.0, -100.75, -102.5])
def test_what_lies_below_the_normal_range_is_unclear(bias):
    """torch's float32 gives 0 for the sigmoid of -92, which is 1e-40."""
    torch.manual_seed(3)
    layer = nn.LSTM(1, 1)
    with torch.no_grad():
        layer.bias_ih_l0[3] = bias
    found = retrograde.audit(layer, torch.randn(3, 1, 1), summed, lengths=[1])
    assert found.ok, str(found)


def test_small_numbers_of_the_normal_range_are_judged():
    """sigmoid(-70) is 4e-31 in float32, too."""

    class Wrong(nn.LSTM):
        def forward(self, x):
            output, state = super().forward(x)
            return 1.5 * output, state

    torch.manual_seed(3)
    layer = Wrong(1, 1)
    with torch.no_grad():
        layer.bias_ih_l0[3] = -70.0
    declared = Declaration(
        cell=lambda module, w: LSTM(*w.values()), state=("h", "c"), batch_first=False
    )
    found = retrograde.audit(layer, torch.randn(3, 1, 1), summed, cells={Wrong: declared})
    of_outputs = [c for c in found.checks if (c.precision, c.what) == ("float32", "its outputs")]
    assert {check.verdict for check in of_outputs} == {"difference"}


def test_what_has_no_true_gradient_is_refused_by_name():
    x = torch.ones(T, B, I)
    x[3, 1, 0] = torch.nan
    with pytest.raises(retrograde.RetrogradeError, match="LSTM.*input is not finite at step 3"):
        retrograde.audit(nn.LSTM(I, H), x, summed)
    layer = nn.LSTM(I, H)
    with torch.no_grad():
        layer.weight_hh_l0[1, 1] = torch.inf
    with pytest.raises(retrograde.RetrogradeError, match="weight_hh_l0 is not finite"):
        retrograde.audit(layer, torch.ones(T, B, I), summed)


@pytest.mark.parametrize(
    "how",
    [{"scale": 1e-6}, {"scale": 30.0}, {"sizes": (40, 1, 1, 1)}, {"sizes": (2, 7, 5, 16)}],
    ids=["tiny", "large", "long", "wide"],
)
@pytest.mark.parametrize("fault", ["no recurrent.output", "no carry", "no bias"])
def test_a_fault_is_named_at_unusual_scales_and_sizes(fault, how):
    what, _, words = FAULTS[fault]
    audit = audited(fault, **how)
    assert not audit.ok and what in audit.differences[0].parameters
    assert words in audit.differences[0].looks_like


def test_what_rounding_decides_is_never_the_worst():
    decided = Check("rnn", "float32", 5, "dL/dx", math.inf, math.inf, 1.0)
    told = Check("rnn", "float32", 5, "w", 1e-8, 1e-6, 1.0)
    assert decided.excess == 0 and Audit((decided, told), (), ()).worst == [told]


def test_the_bands_are_those_that_are_published():
    table = retrograde.audits.bands.__doc__
    for dtype, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        row = next(line.split() for line in table.splitlines() if line.split()[:1] == [name])
        eps, bound = torch.finfo(dtype).eps, allowed(dtype, 100, 0.0)
        assert row[1:] == [f"{eps:.1e}", f"{bound:.1e}", f"{8 * bound:.1e}"]
    assert [verdict(error, 1e-6) for error in (1e-6, 2e-6, 9e-6, float("inf"))] == [
        "rounding",
        "unclear",
        "difference",
        "difference",
    ]


EXAMPLE = """
import sys; sys.path.insert(0, {folder!r})
from test_audit import *

def right():
    return Layer(""), torch.ones(T, B, I), lambda m, x: m(x)[0].sum(), CELLS

def wrong():
    return Layer("no carousel"), torch.ones(T, B, I), lambda m, x: m(x)[0].sum(), CELLS
"""
CELLS = {Layer: Declaration(cell=cell, state=("h", "c"))}


def test_the_command_exits_with_1_on_a_difference(tmp_path, capsys, monkeypatch):
    file, codes = tmp_path / "example.py", []
    file.write_text(EXAMPLE.format(folder=str(Path(__file__).parent)))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("right", "wrong"):
        monkeypatch.setattr(sys, "argv", ["retrograde", "audit", f"{file}:{name}", "--length", "3"])
        with pytest.raises(SystemExit) as stop:
            main()
        codes.append(stop.value.code or 0)
    told = capsys.readouterr().out
    assert codes == [0, 1] and "all are those of the step" in told
    assert "the route carousel were missing" in " ".join(told.split())


def test_the_report(tmp_path):
    audit = audited("no carousel")
    audit.to_html(tmp_path / "audit.html")
    audit.to_json(tmp_path / "audit.json")
    page = (tmp_path / "audit.html").read_text()
    assert "carousel" in page and not re.search(r"https?:|<script", page)
    assert (
        page.count("<td") == len(TITLES) * len(audit.worst)
        and str(audit.differences[0])[:20] in page
    )
    assert '"ok": false' in (tmp_path / "audit.json").read_text()
    assert "difference" in str(audit) and "carousel" in str(audit)


def summed(model, x):
    return model(x)[0].sum()


class Noisy(nn.LSTM):
    def forward(self, x, hx=None):
        return super().forward(x + 0.1 * torch.randn_like(x), hx)


def test_dropout_is_switched_off_and_other_randomness_refused_by_name():
    x = torch.ones(T, B, I)
    for model in (nn.LSTM(I, H, 2, dropout=0.5), retrograde.nn.LSTM(I, H, 2, dropout=0.5)):
        found = retrograde.audit(model, x, summed)
        assert found.ok and any("dropout switched off" in note for note in found.notes)
        assert model.dropout == 0.5 and model.training
    declared = Declaration(
        cell=lambda module, w: LSTM(*w.values()), state=("h", "c"), batch_first=False
    )
    with pytest.raises(retrograde.RetrogradeError, match="Noisy.*two runs of it differ"):
        retrograde.audit(Noisy(I, H), x, summed, cells={Noisy: declared})


class Forgetful(nn.LSTM):
    def forward(self, x, hx=None):
        output, (h, c) = super().forward(x, hx)
        return output, (h, c.detach())


def test_a_returned_state_that_is_detached_is_noted():
    """A loss on it trains nothing, as may be meant: no difference, but none could be seen."""
    declared = Declaration(
        cell=lambda module, w: LSTM(*w.values()), state=("h", "c"), batch_first=False
    )
    x = torch.ones(T, B, I)
    found = retrograde.audit(Forgetful(I, H), x, summed, cells={Forgetful: declared})
    (note,) = found.notes
    assert found.ok and re.search(
        "detaches what it returns as c, .* nothing of that is compared", note
    )
    assert not retrograde.audit(nn.LSTM(I, H), x, summed).notes


class Scanned(nn.Module):
    """A plain RNN by torch's scan, whose step closes over the weights."""

    forgets = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.r = nn.Parameter(torch.randn(H, I)), nn.Parameter(torch.randn(H, H))

    def forward(self, x):
        def step(h, x_k):
            h = torch.tanh(x_k @ self.w.T + h @ self.r.T)
            return h, h.clone()

        if self.forgets and torch.compiler.is_compiling():
            return torch.tanh(x @ self.w.T + 0 * self.r.sum())
        return scan(step, x.new_zeros(x.shape[1], H), x, dim=0)[1]


class Associative(nn.Module):
    """A minimal GRU by torch's associative_scan."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w, self.b = nn.Parameter(torch.randn(2 * H, I)), nn.Parameter(torch.randn(2 * H))

    def forward(self, x):
        def joined(one, other):
            return one[0] * other[0], other[0] * one[1] + other[1]

        z, n = (x @ self.w.T + self.b).chunk(2, -1)
        z = z.sigmoid()
        return associative_scan(joined, (1 - z, z * n), 0, combine_mode="generic")[1]


SCANS = {
    Scanned: lambda module, w: Elman(w["w"], w["r"]),
    Associative: lambda module, w: MinGRU(w["w"], w["b"]),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # by torch's scan
@pytest.mark.parametrize("kind", SCANS)
def test_torchs_scans_are_right(kind):
    """A step that closed over a parameter lost a part of its gradient in torch 2.11 and 2.12."""
    declared = Declaration(cell=SCANS[kind], batch_first=False)
    found = retrograde.audit(
        kind(), torch.randn(4, B, I), lambda m, x: m(x).sum(), cells={kind: declared}
    )
    assert found.ok and {c.verdict for c in found.checks} == {"rounding"}, str(found)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")
def test_what_is_compiled_is_audited_as_it_is_compiled():
    model = Scanned()
    model.forgets = True
    declared = {Scanned: Declaration(cell=SCANS[Scanned], batch_first=False)}
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, B, I)
    found = retrograde.audit(compiled, x, lambda m, x: m(x).sum(), cells=declared)
    assert not found.ok and found.differences[0].smallest == (2, 1)
    assert found.differences[0].parameters[0] in ("its last state", "its outputs", "r")


def test_random_state_and_modes_stay_as_they_were():
    model, x = nn.LSTM(I, H, 2, dropout=0.5), torch.ones(T, B, I)

    def failing(copy, x):
        model.eval()
        copy(x + torch.rand(1))
        raise ZeroDivisionError

    before = torch.get_rng_state()
    retrograde.audit(model, x, summed)
    with pytest.raises(ZeroDivisionError):
        retrograde.audit(model, x, failing)
    assert torch.equal(torch.get_rng_state(), before) and model.training


def test_a_frozen_parameter_is_not_compared():
    model = nn.LSTM(I, H)
    model.bias_hh_l0.requires_grad_(False)
    found = retrograde.audit(model, torch.ones(T, B, I), summed)
    assert found.ok and "bias_hh_l0" not in {check.what for check in found.checks}
    assert any("bias_hh_l0" in note for note in found.notes)


def test_a_criterion_is_refused():
    with pytest.raises(retrograde.RetrogradeError, match="Wrap it"):
        retrograde.audit(nn.LSTM(I, H), torch.ones(T, B, I), nn.MSELoss())
