# /// script
# [tool.marimo.display]
# theme = "system"
# ///
"""The lecture's layout; `retrograde explore` shows it. What it teaches is in the other modules."""

import marimo

app = marimo.App(app_title="Back-propagation through time, seen", width="medium")

with app.setup:
    import marimo as mo

    from retrograde.explore.lesson import GENERATIONS, Setting, flow_of
    from retrograde.explore.showing import Picture
    from retrograde.explore.views import VIEWS


@app.cell
def _():
    mo.md("# Back-propagation through time, seen")
    return


@app.cell
def _():
    generation = mo.ui.dropdown(GENERATIONS, value="LSTM of 2000: forget gate", label="generation")
    scale = mo.ui.slider(0.0, 6.0, 0.1, 1.0, label="recurrent scale", show_value=True)
    forget = mo.ui.slider(-4.0, 8.0, 0.25, 0.0, label="forget bias", show_value=True)
    steps = mo.ui.slider(10, 200, 10, 100, label="length T", show_value=True)
    hidden = mo.ui.slider(4, 64, 4, 32, label="hidden size H", show_value=True)
    view = mo.ui.radio(list(VIEWS), value="Map", inline=True)
    return forget, generation, hidden, scale, steps, view


@app.cell
def _(forget, generation, hidden, scale, steps, view):
    mo.vstack([mo.hstack([generation, scale, forget, steps, hidden], wrap=True), view])
    return


@app.cell
def _(forget, generation, hidden, scale, steps, view):
    setting = Setting(
        generation=generation.value,
        steps=steps.value,
        hidden=hidden.value,
        recurrent_scale=scale.value,
        forget_bias=forget.value,
    )
    _view = VIEWS[view.value]
    _flow = flow_of(setting)
    mo.vstack(
        [
            mo.md(f"### {_view.question}"),
            Picture(_view.draw(_flow)),
            mo.md(f"*{_view.reading}*"),
            mo.md(_view.answer(_flow)),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
