# /// script
# [tool.marimo.display]
# theme = "system"
# ///
"""The lecture's layout; `retrograde explore` shows it. What it teaches is in the other modules."""

import marimo

app = marimo.App(app_title="Back-propagation through time, seen", width="medium")

with app.setup:
    from dataclasses import replace

    import marimo as mo

    from retrograde.explore import equations, examples, proof, unrolled
    from retrograde.explore.lesson import GENERATIONS, Setting
    from retrograde.explore.showing import pictures, typeset
    from retrograde.explore.views import VIEWS

    SCREENS = (
        "1. The hidden past",
        "2. Turn the knobs",
        "3. Step by step",
        "4. Three steps by hand",
        "5. An article's numbers",
        "6. Why an LSTM explodes",
        "7. Clip the output layer?",
        "8. Where to clip?",
        "9. Which matrix explodes?",
    )

    def told(question, *knobs, picture, reading, answer):
        """A screen: the question, what can be turned, the picture, how to read it, the answer."""
        return mo.vstack(
            [
                mo.md(f"## {question}"),
                mo.hstack(knobs, justify="start", align="center", wrap=True, gap=0.75),
                *picture,
                mo.md(f"*How to read it.* {reading}"),
                mo.callout(mo.md(typeset(answer))),
            ],
            gap=1,
        )

    def knob(low, high, step, at, label):
        return mo.ui.slider(low, high, step, at, label=label, show_value=True, include_input=False)


@app.cell
def _():
    _first = mo.query_params().get("screen") or "1"
    _at = int(_first) - 1 if _first in "123456789" else 0
    screen = mo.ui.radio(SCREENS, value=SCREENS[_at])
    mo.sidebar([mo.md("### Back-propagation through time, seen"), screen], width="15rem")
    return (screen,)


@app.cell
def _():
    generation = mo.ui.dropdown(GENERATIONS, value="LSTM of 2000: forget gate", label="network")
    scale = knob(0, 6, 0.1, 1, "recurrent scale")
    steps = knob(10, 200, 10, 100, "length T")
    hidden = knob(4, 64, 4, 32, "hidden size H")
    biases = mo.ui.dictionary(
        {
            "forget_bias": knob(-4, 8, 0.25, 0, "forget bias"),
            "input_bias": knob(-6, 6, 0.25, 0, "input gate bias"),
            "output_bias": knob(-6, 6, 0.25, 0, "output gate bias"),
            "reset_bias": knob(-6, 6, 0.25, 0, "reset gate bias"),
        }
    )
    loss = mo.ui.radio({"every step": True, "the last step": False}, "every step", inline=True)
    view = mo.ui.radio(list(VIEWS), value="map", inline=True)
    return biases, generation, hidden, loss, scale, steps, view


@app.cell
def _(biases, generation, hidden, loss, scale, steps):
    setting = Setting(
        generation.value,
        steps.value,
        hidden.value,
        scale.value,
        **biases.value,
        every_step=loss.value,
    )
    turned = [generation, scale, *(biases[name] for name in setting.knobs)]
    return setting, turned


@app.cell
def _(screen):
    mo.stop(screen.value != SCREENS[0])
    far_bias = knob(-2, 8, 0.25, 5, "forget bias of A")
    near_bias = knob(-2, 8, 0.25, 0, "forget bias of B")
    return far_bias, near_bias


@app.cell
def _(far_bias, near_bias):
    _a, _b = proof.with_equal_norms(
        Setting(forget_bias=far_bias.value), Setting(forget_bias=near_bias.value)
    )
    _columns = [
        mo.vstack(
            [
                mo.md(f"**Network {name}** `param.grad.norm()` = **{one.norm:.6g}**"),
                *pictures(one.flow.chart()),
            ]
        )
        for name, one in (("A", _a), ("B", _b))
    ]
    told(
        "Two networks, one gradient norm. Do both learn from the past?",
        far_bias,
        near_bias,
        picture=[mo.hstack(_columns, widths="equal", wrap=True)],
        reading="Both curves are the size of the gradient's parts by lag, on a scale of powers of "
        "two. What a training loop prints stands above them.",
        answer=f"**The norm cannot tell.** A reaches {_a.flow.reach} of {_a.flow.steps - 1} steps, "
        f"B {_b.flow.reach}. The gradient of a recurrent weight is a sum over lags, and the near "
        f"ones hide the far ones. (Both are torch.nn.LSTM with the same weights but for the forget "
        f"bias; the output layer of B is {_b.readout:.3g} times that of A, hence the equal norms.)",
    )
    return


@app.cell
def _(hidden, loss, screen, setting, steps, turned, view):
    mo.stop(screen.value != SCREENS[1])
    _view = VIEWS[view.value]
    told(
        _view.question,
        *turned,
        steps,
        hidden,
        mo.hstack([mo.md("loss at"), loss], justify="start"),
        mo.hstack([mo.md("picture"), view], justify="start"),
        picture=pictures(_view.draw(setting)),
        reading=_view.reading,
        answer=_view.answer(setting),
    )
    return


@app.cell
def _():
    length = knob(4, 40, 1, 12, "length T")
    get_lag, set_lag = mo.state(0)
    return get_lag, length, set_lag


@app.cell
def _(get_lag, length, set_lag):
    _most = length.value - 1
    lag = mo.ui.slider(
        0,
        _most,
        1,
        min(get_lag(), _most),
        label="steps walked back",
        on_change=set_lag,
        show_value=True,
    )
    back = mo.ui.button(label="◀ back", on_click=lambda _: set_lag(lambda at: min(at + 1, _most)))
    forth = mo.ui.button(label="forward ▶", on_click=lambda _: set_lag(lambda at: max(at - 1, 0)))
    return back, forth, lag


@app.cell
def _(back, forth, get_lag, hidden, lag, length, screen, setting, turned):
    mo.stop(screen.value != SCREENS[2])
    _setting = replace(setting, steps=length.value)
    _at = min(get_lag(), length.value - 1)
    _stop = unrolled.walk(_setting)[_at]
    told(
        "What happens to one gradient on its way back?",
        *turned,
        length,
        hidden,
        back,
        forth,
        lag,
        picture=[
            mo.Html(unrolled.both(_setting, _at)),
            mo.hstack(
                [
                    mo.Html(unrolled.table(_setting, _at)),
                    mo.md(f"$${equations.backward(_setting.generation)}$$"),
                ],
                justify="start",
                wrap=True,
                gap=2,
            ),
        ],
        reading="Under each state stands the norm of its adjoint. Circles have the colour of their "
        "lag, lines that of their route; a line is as thick as what came along it is large.",
        answer=unrolled.in_words(_setting, _at),
    )
    return


@app.cell
def _():
    recurrent = knob(-1.5, 1.5, 0.1, 0.5, "$W_S$")
    return (recurrent,)


@app.cell
def _(recurrent, screen):
    mo.stop(screen.value != SCREENS[3])
    _found = examples.three_steps(recurrent.value)
    told(
        "Three steps, no activation function. What vanishes?",
        recurrent,
        picture=[
            mo.md(examples.three_steps_in_tex(_found)),
            *pictures(_found.flow.by_lag("weight_hh", bins="every").chart()),
        ],
        reading="The gradient is the sum of the three terms, one for each lag; a bar is the share "
        "of a term in the sum. Against zero stands what pulls the other way.",
        answer=examples.three_steps_in_words(_found),
    )
    return


@app.cell
def _(screen):
    mo.stop(screen.value != SCREENS[4])
    told(
        "An article prints three numbers. Are they right?",
        picture=[
            mo.md(examples.components_in_markdown()),
            *pictures(examples.printed_numbers().by_time("weight_ih_l0").chart()),
        ],
        reading="The rows of the map are the losses of steps 1 to 3, the columns the steps that "
        "use the weights. The article prints its top row.",
        answer=examples.components_in_words(),
    )
    return


@app.cell
def _():
    gate_scale = knob(0, 8, 0.25, 6, "scale of $R_i, R_f, R_g, R_o$")
    gate_bias = knob(-2, 8, 0.25, 3, "forget bias")
    return gate_bias, gate_scale


@app.cell
def _(gate_bias, gate_scale, screen):
    mo.stop(screen.value != SCREENS[5])
    _setting = Setting(
        recurrent_scale=gate_scale.value, forget_bias=gate_bias.value, every_step=False
    )
    told(
        "The carousel cannot explode. Why does an LSTM?",
        gate_scale,
        gate_bias,
        picture=[
            mo.md(examples.growth_in_markdown(_setting)),
            *pictures(VIEWS["crossings"].draw(_setting))[:1],
        ],
        reading="The table cuts all routes but those named, and gives what a step multiplies the "
        "adjoint by. The lines are the paths of 0, 1, 2, ... crossings of recurrent weights.",
        answer=examples.growth_in_words(_setting),
    )
    return


@app.cell
def _():
    gain = knob(0.8, 1.3, 0.02, 1.1, "largest eigenvalue")
    return (gain,)


@app.cell
def _(gain, screen):
    mo.stop(screen.value != SCREENS[6])
    told(
        "Should the gradient of the output layer be clipped too?",
        gain,
        picture=[mo.md(examples.lengths_in_markdown(gain.value))],
        reading="A plain RNN with one loss at the last step, ever longer sequences, and the norms "
        "of the gradients of its two layers.",
        answer=examples.lengths_in_words(gain.value),
    )
    return


@app.cell
def _():
    limit = mo.ui.slider(
        steps=[2.0**e for e in range(-10, 2)], value=2.0**-5, label="limit inside", show_value=True
    )
    return (limit,)


@app.cell
def _(limit, screen):
    mo.stop(screen.value != SCREENS[7])
    _found = examples.clipped_where(examples.EXPLODING, limit.value)
    told(
        "Clip on the way back, or just before the update?",
        limit,
        picture=pictures(_found.inside.chart()),
        reading="The gradient before and after clipping inside: what each lag, and each route, "
        "contributes to it.",
        answer=examples.clipped_in_words(_found),
    )
    return


@app.cell
def _():
    weight = knob(0.5, 6, 0.25, 4, "$w$, the eigenvalue")
    return (weight,)


@app.cell
def _(screen, weight):
    mo.stop(screen.value != SCREENS[8])
    told(
        "Which matrix makes gradients explode?",
        weight,
        picture=[mo.md(examples.factors_in_markdown(weight.value))],
        reading="What one step multiplies an adjoint by, in a network of one unit at its steepest "
        "point; and the norm of n Jacobians in a row for a matrix without any eigenvalue but 0.",
        answer=examples.factors_in_words(weight.value),
    )
    return


if __name__ == "__main__":
    app.run()
