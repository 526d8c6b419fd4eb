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
    from retrograde.explore.showing import pictures, side_by_side, typeset
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
        "10. How long a window?",
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
        return mo.ui.slider(low, high, step, at, label=label, show_value=True)


@app.cell
def _():
    _numbers = [name.partition(".")[0] for name in SCREENS]
    _asked = mo.query_params().get("screen")
    _first = _numbers.index(_asked) if _asked in _numbers else 0
    get_screen, set_screen = mo.state(_first, allow_self_loops=True)
    return get_screen, set_screen


@app.cell
def _(get_screen, set_screen):
    # A name of its own keeps an element alive, and what it does when it is clicked.
    contents = mo.ui.radio(
        SCREENS,
        value=SCREENS[get_screen()],
        on_change=lambda name: set_screen(SCREENS.index(name)),
    )
    mo.sidebar([mo.md("### Back-propagation through time, seen"), contents], width="16rem")
    return (contents,)


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
    loss = mo.ui.dropdown({"every step": True, "the last": False}, "every step", label="loss at")
    view = mo.ui.dropdown(list(VIEWS), "map", label="picture")
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
    turned = [generation, scale, *(biases[name] for name in setting.knobs), hidden]
    return setting, turned


@app.cell
def _():
    far_bias = knob(-2, 8, 0.25, 5, "forget bias of A")
    near_bias = knob(-2, 8, 0.25, 0, "forget bias of B")
    return far_bias, near_bias


@app.cell
def _(far_bias, get_screen, near_bias):
    mo.stop(get_screen() != 0)
    _a, _b = proof.with_equal_norms(
        Setting(forget_bias=far_bias.value), Setting(forget_bias=near_bias.value)
    )
    _columns = [
        mo.vstack(
            [
                mo.md(f"**Network {name}**: `param.grad.norm()` = **{one.norm:.6g}**"),
                *pictures(one.flow.chart(), y=proof.scale_of(_a, _b)),
            ]
        )
        for name, one in (("A", _a), ("B", _b))
    ]
    told(
        "Two networks, one gradient norm. Do both learn from the past?",
        far_bias,
        near_bias,
        picture=[mo.Html(side_by_side(_columns))],
        reading="Each curve is the size of the gradient's parts, lag by lag, on the same scale. "
        "Above it is what a training loop would print.",
        answer=proof.in_words(_a, _b),
    )
    return


@app.cell
def _(get_screen, loss, setting, steps, turned, view):
    mo.stop(get_screen() != 1)
    _view = VIEWS[view.value]
    told(
        _view.question,
        *turned,
        steps,
        loss,
        view,
        picture=pictures(_view.draw(setting)),
        reading=_view.reading,
        answer=_view.answer(setting),
    )
    return


@app.cell
def _():
    length = knob(4, 40, 1, 12, "length T")
    get_lag, set_lag = mo.state(3)
    return get_lag, length, set_lag


@app.cell
def _(get_lag, length, set_lag):
    _most = length.value - 1
    walked = mo.ui.slider(
        *(0, _most, 1, min(get_lag(), _most)),
        label="steps back",
        show_value=True,
        on_change=set_lag,
    )
    return (walked,)


@app.cell
def _(length, set_lag):
    # Not beside the slider: a cell does not run again for what its own elements set.
    def _by(number):
        return lambda _: set_lag(lambda lag: max(0, min(lag + number, length.value - 1)))

    walk = [
        mo.ui.button(label="◀ one step back", on_click=_by(1), keyboard_shortcut="ArrowLeft"),
        mo.ui.button(label="forward ▶", on_click=_by(-1), keyboard_shortcut="ArrowRight"),
    ]
    return (walk,)


@app.cell
def _(get_lag, get_screen, length, setting, turned, walk, walked):
    mo.stop(get_screen() != 2)
    _setting = replace(setting, steps=length.value)
    _lag = min(get_lag(), length.value - 1)
    told(
        "What happens to one gradient on its way back?",
        *walk,
        walked,
        mo.accordion({"the network": mo.hstack([*turned, length], justify="start", wrap=True)}),
        picture=[
            mo.Html(unrolled.both(_setting, _lag)),
            mo.Html(
                side_by_side(
                    [
                        mo.Html(unrolled.table(_setting, _lag)),
                        mo.vstack(
                            [
                                mo.md(f"$${equations.forward(_setting.generation)}$$"),
                                mo.md(f"$${equations.backward(_setting.generation)}$$"),
                            ]
                        ),
                    ]
                )
            ),
        ],
        reading="Beside each state is the norm of its adjoint. Circles are coloured by lag, lines "
        "by route; the thicker a line, the larger what came along it.",
        answer=unrolled.in_words(_setting, _lag),
    )
    return


@app.cell
def _():
    recurrent = knob(-1.5, 1.5, 0.1, 0.5, "$W_S$")
    return (recurrent,)


@app.cell
def _(get_screen, recurrent):
    mo.stop(get_screen() != 3)
    _found = examples.three_steps(recurrent.value)
    told(
        "Three steps, no activation function. What vanishes?",
        recurrent,
        picture=[
            mo.md(examples.three_steps_in_tex(_found)),
            *pictures(_found.flow.by_lag("weight_hh", bins="every").chart()),
        ],
        reading="The gradient is the sum of three terms, one for each lag; a bar is the share of a "
        "term in the sum. A term below zero pulls the other way.",
        answer=examples.three_steps_in_words(_found),
    )
    return


@app.cell
def _(get_screen):
    mo.stop(get_screen() != 4)
    told(
        "An article prints three numbers. Are they right?",
        picture=[
            mo.md(typeset(examples.components_in_markdown())),
            *pictures(examples.printed_numbers().by_time("weight_ih_l0").chart()),
        ],
        reading="Each row of the map is the loss of one step, each column a step that uses the "
        "weights. The article prints the top row.",
        answer=examples.components_in_words(),
    )
    return


@app.cell
def _():
    gate_scale = knob(0, 8, 0.25, 6, "recurrent scale of the gates")
    gate_bias = knob(-2, 8, 0.25, 3, "forget bias")
    return gate_bias, gate_scale


@app.cell
def _(gate_bias, gate_scale, get_screen):
    mo.stop(get_screen() != 5)
    _setting = Setting(
        steps=60,
        recurrent_scale=gate_scale.value,
        forget_bias=gate_bias.value,
        every_step=False,
    )
    told(
        "The carousel cannot explode. Why does an LSTM?",
        gate_scale,
        gate_bias,
        picture=[
            mo.md(typeset(examples.growth_in_markdown(_setting))),
            *pictures(VIEWS["crossings"].draw(_setting))[:1],
        ],
        reading="Each row of the table cuts all routes but those named, and gives the factor by "
        "which a step multiplies the adjoint. Each line holds the paths that cross recurrent "
        "weights 0, 1, 2, ... times.",
        answer=examples.growth_in_words(_setting),
    )
    return


@app.cell
def _():
    gain = knob(0.8, 1.3, 0.02, 1.1, "largest eigenvalue")
    return (gain,)


@app.cell
def _(gain, get_screen):
    mo.stop(get_screen() != 6)
    told(
        "Should the gradient of the output layer be clipped too?",
        gain,
        picture=[
            mo.md(examples.lengths_in_markdown(gain.value)),
            *pictures(examples.lengths_chart(gain.value)),
        ],
        reading="The table has the norms of both gradients for longer and longer sequences with "
        "one loss at the end; the curve is the adjoint on its way back through the longest.",
        answer=examples.lengths_in_words(gain.value),
    )
    return


@app.cell
def _():
    limit = mo.ui.slider(
        steps=[2.0**e for e in range(-10, 2)],
        value=2.0**-5,
        label="limit of an adjoint, inside",
        show_value=True,
    )
    return (limit,)


@app.cell
def _(get_screen, limit):
    mo.stop(get_screen() != 7)
    _found = examples.clipped_where(examples.EXPLODING, limit.value)
    told(
        "Clip on the way back, or just before the update?",
        limit,
        picture=pictures(_found.inside.chart()),
        reading="What each lag, and each route, contributes to the gradient, before and after "
        "clipping inside back-propagation.",
        answer=examples.clipped_in_words(_found),
    )
    return


@app.cell
def _():
    weight = knob(0.5, 6, 0.25, 4, "eigenvalue w")
    return (weight,)


@app.cell
def _(get_screen, weight):
    mo.stop(get_screen() != 8)
    told(
        "Which matrix makes gradients explode?",
        weight,
        picture=[
            mo.md(examples.factors_in_markdown(weight.value)),
            *pictures(examples.factors_chart(weight.value)),
        ],
        reading="Three networks of one unit, each where its slope is steepest, and one of two "
        "units whose eigenvalues are both 0. A rising line explodes.",
        answer=examples.factors_in_words(weight.value),
    )
    return


@app.cell
def _():
    kept_bias = knob(-2, 8, 0.25, 2, "forget bias")
    return (kept_bias,)


@app.cell
def _(get_screen, kept_bias):
    mo.stop(get_screen() != 9)
    _setting, _view = Setting(forget_bias=kept_bias.value), VIEWS["window"]
    told(
        _view.question,
        kept_bias,
        picture=pictures(_view.draw(_setting)),
        reading=_view.reading,
        answer=_view.answer(_setting),
    )
    return


@app.cell
def _(get_screen, set_screen):
    def _to(by):
        name = SCREENS[get_screen() + by]
        return mo.ui.button(
            label=f"next: {name} ▶" if by > 0 else f"◀ {name}",
            on_click=lambda _: set_screen(lambda at: at + by),
            keyboard_shortcut="PageDown" if by > 0 else "PageUp",
        )

    around = [_to(by) for by in (-1, 1) if 0 <= get_screen() + by < len(SCREENS)]
    mo.hstack(around, justify="start", wrap=True)
    return (around,)


if __name__ == "__main__":
    app.run()
