"""Writes docs/rules/ and docs/problems.md: the rules of the diagnosis, one by one and by symptom.

    python scripts/rule_pages.py

Both come from the table that the diagnosis runs on. A rule that no symptom leads to is an error.
"""

from pathlib import Path

from retrograde.diagnosis import RULES, explain

FOLDER = Path(__file__).parent.parent / "docs" / "rules"
PROBLEMS = FOLDER.parent / "problems.md"

SYMPTOMS = {
    "The loss is NaN or infinite": (
        "",
        "non-finite-data",
        "non-finite-loss",
        "non-finite",
        "precision",
    ),
    "The loss jumps, or gradients are huge": (
        "",
        "exploding",
        "rounding-decides",
        "weight-scale",
        "output-outweighs",
    ),
    "The loss stays on a plateau": (
        "",
        "unreached",
        "no-gradient",
        "units-alike",
        "broadcast",
        "probabilities",
        "target-scale",
        "input-scale",
        "saturated",
        "dead-units",
        "vanishing-in-depth",
    ),
    "It learns, but not from the past": (
        "--needs-lag 168",
        "no-time",
        "vanishing",
        "forget-gate-too-short",
        "double-bias",
        "near-lags-dominate",
        "conflicting-lags",
        "solved",
    ),
    "The result depends on the rest of the batch, or on padding": (
        "",
        "samples-mixed",
        "reads-padding",
        "initial-state",
    ),
    "Training is slow, or its memory grows": (
        "",
        "kept-graph",
        "window",
    ),
    "Can I believe these numbers?": (
        "",
        "void",
        "misleading-radius",
    ),
}
"""By what someone sees: options of the command that looks for its reason, and the rules that may
answer.
"""

BY_HAND = {
    "no-time": "longer sequences, or hand the state on without `detach`",
    "initial-state": "start from zero, or make the state a parameter",
    "kept-graph": "`detach` the state that is carried on; no `retain_graph`",
    "non-finite-data": "mask or drop those entries",
    "non-finite-loss": "mend the loss; `zero_infinity=True` for CTC",
    "broadcast": "give prediction and target one shape",
    "probabilities": "give the loss what it takes: logits, or logarithms",
    "void": "what stands between the steps; float64",
    "rounding-decides": "run the pass in float64; smaller weights",
    "solved": "nothing, or a harder batch",
    "conflicting-lags": "look whether it is near an optimum",
    "window": "truncate back-propagation to the window",
    "misleading-radius": "go by the exponents, not by the radius",
}
"""What to do where no remedy can be tried on a copy of the model."""

PROBLEMS_HEAD = """# I have a problem

Give the diagnosis one batch: a function in `train.py` that takes nothing and returns
`(model, batch, loss_fn)`, with `loss_fn(model, batch)` the scalar loss.

```console
$ retrograde diagnose train.py:example --html report.html
```

It asks every question below by itself, says which rules found something, and tries their remedies
on a copy of the model. In Python it is `retrograde.diagnose(model, batch, loss_fn)`;
[how to read a report](how-to-read-a-report.md) goes through what comes out. While a model trains,
[`Monitor`](watching-a-training-run.md) looks at every hundredth pass and keeps the last good one.
How long the input window or the truncation must be is a question of its own:
[is my window long enough?](is-my-window-long-enough.md)

What helps is tried where it has a `name`: `diagnose` applies that remedy to a copy of the model and
measures what it does. The page of a rule says what its remedies change.
"""

INDEX = """# The rules

What the diagnosis looks for, in the order in which it tells it. It asks five questions, one after
the other, since an answer means little where an earlier question has gone wrong: is the recurrence
wired as you think, are the numbers sound, are they on a scale that can be learnt from, does the
gradient reach, and what else is worth knowing. Findings are told in this order, errors and warnings
first and remarks after them.

Each page is what `retrograde explain RULE` prints, written by `scripts/rule_pages.py` from the
table that the diagnosis runs on.

| rule | what it finds | about |
|---|---|---|
"""


PROBLEMS_TAIL = """## Other questions

| question | command |
|---|---|
| Is the window of truncated back-propagation long enough? | `retrograde horizon train.py:example` |
| Did my change help? | `retrograde compare before.json after.json` |
| What do the weights say before training? | `retrograde inspect model.safetensors` |
| What does a rule go by? | `retrograde explain vanishing` |
"""


def remedy(name: str) -> str:
    """What helps against what a rule finds, in a cell of a table."""
    tried = ", ".join(f"`{remedy}`" for remedy in RULES[name].remedies)
    return tried or BY_HAND[name]


def problems() -> str:
    """The rules by symptom.

    Raises:
        SystemExit: if a rule stands under no symptom.
    """
    if missing := set(RULES) - {name for _, *names in SYMPTOMS.values() for name in names}:
        raise SystemExit(f"SYMPTOMS in scripts/rule_pages.py leads to no {sorted(missing)}")
    parts = [PROBLEMS_HEAD]
    for symptom, (options, *names) in SYMPTOMS.items():
        command = f"```console\n$ retrograde diagnose train.py:example {options}\n```\n\n"
        rows = "".join(
            f"| [{RULES[name].title}](rules/{name}.md) | {remedy(name)} |\n" for name in names
        )
        parts.append(
            f"## {symptom}\n\n{command if options else ''}"
            f"| what it may say | what helps |\n|---|---|\n{rows}"
        )
    return "\n".join([*parts, PROBLEMS_TAIL])


def render() -> dict[str, str]:
    """The pages of the rules by file name."""
    rows = "".join(
        f"| [{name}]({name}.md) | {rule.title} | {rule.kind} |\n" for name, rule in RULES.items()
    )
    contents = "\n```{toctree}\n:hidden:\n\n" + "".join(f"{name}\n" for name in RULES) + "```\n"
    pages = {f"{name}.md": explain(name) for name in RULES}
    return {"index.md": INDEX + rows + contents, **pages}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for left in {path.name for path in FOLDER.iterdir()} - set(render()):
        (FOLDER / left).unlink()
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    PROBLEMS.write_text(problems(), encoding="utf-8")
