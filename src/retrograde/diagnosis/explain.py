"""A rule explained, from the same table that the diagnosis runs on; a page of the docs is this."""

from retrograde import _checks
from retrograde.diagnosis.remedies import REMEDIES
from retrograde.diagnosis.rules import RULES
from retrograde.diagnosis.thresholds import TABLE


def explain(name: str) -> str:
    """A rule in Markdown: what it looks at, its thresholds, its remedies and its sources.

    Args:
        name: of the rule, a key of `RULES`.

    Raises:
        ArgumentError: for an unknown rule; the message lists those there are.

    Example:
        >>> from retrograde.diagnosis import explain
        >>> print(explain("vanishing").splitlines()[0])
        # The gradient vanishes
    """
    rule = RULES[_checks.existing("rule", name, RULES)]
    parts = [f"# {rule.title}", f"Rule `{rule.name}`. {rule.meaning}"]
    rows = [row for row in TABLE if row.name in rule.thresholds]
    if rows:
        lines = [f"- `{row.name}` = {row.value:g} {row.unit}. {row.reason}" for row in rows]
        parts += ["## Thresholds", "\n".join(lines)]
    if rule.remedies:
        lines = [f"- `{name}`: {REMEDIES[name].description}" for name in rule.remedies]
        parts += [
            "## Remedies that are tried",
            "On a copy of the model, in the same pass, where they have a place in the layer:",
            "\n".join(lines),
        ]
    if rule.sources:
        parts += ["## Sources", "\n".join(f"- {source}" for source in rule.sources)]
    return "\n\n".join(parts) + "\n"
