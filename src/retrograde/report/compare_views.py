"""A comparison for a terminal and as a page: settings first, then layer by layer."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from retrograde._terminal import as_text, indented, plain, rich
from retrograde._words import suffix, value
from retrograde.report.changes import Changes, FindingChange, LayerChange, Number
from retrograde.report.html import environment
from retrograde.report.text import moved, place

STYLES = {"better": "green", "worse": "bold red", "changed": "yellow", "same": "dim"}
CAUTION = "These settings differ, so that a change below may come from them:"


def text(comparison: Changes) -> str:
    """The comparison as plain text, 120 columns wide."""
    return as_text(renderable(comparison))


def renderable(comparison: Changes) -> Any:
    """The comparison as something that a rich console can print."""
    parts: list[Any] = [
        rich().Text(plain(title(comparison)), style="bold"),
        rich().Text(comparison.summary),
    ]
    if comparison.loss is not None:
        parts.append(_numbers([comparison.loss]))
    if comparison.settings:
        table = rich().Table(box=None, pad_edge=False, show_header=False)
        for differs in comparison.settings:
            words = f"{differs.before} -> {differs.after}"
            if "\n" in words:
                words = f"{differs.before}\n-> {differs.after}"
            table.add_row(rich().Text(plain(differs.name)), rich().Text(plain(words)))
        parts += ["", rich().Text(CAUTION, style="yellow"), indented(table)]
    if comparison.findings:
        parts += ["", *_findings(comparison.findings)]
    for layer in comparison.layers:
        parts += ["", *_layer(layer)]
    if any((comparison.only_before, comparison.only_after)):
        parts.append("")
    parts += [rich().Text(plain(line)) for line in alone(comparison)]
    return rich().Group(*parts)


def page(comparison: Changes) -> str:
    """The comparison as one page that opens offline and needs no script."""
    filters: dict[str, Callable[..., object]] = {"value": value, "suffix": suffix, "place": place}
    template = environment(**filters).get_template("compare.html.jinja")
    text: str = template.render(
        comparison=comparison,
        title=title(comparison),
        caution=CAUTION,
        alone=alone(comparison),
        version=version("retrograde"),
    )
    return text


def title(comparison: Changes) -> str:
    """Which two are compared."""
    return "From {} to {}".format(*comparison.names)


def alone(comparison: Changes) -> list[str]:
    """Layers that one report alone has, a line each."""
    before, after = comparison.names
    return [
        *(f"Only in {before}: {name}" for name in comparison.only_before),
        *(f"Only in {after}: {name}" for name in comparison.only_after),
    ]


def _layer(layer: LayerChange) -> list[Any]:
    heading = rich().Text(plain(layer.name), style="bold")
    if layer.same:
        heading.append(": nothing changed", style="dim")
        return [heading]
    table = _numbers([part for part in layer.numbers if part.verdict != "same"])
    same = [part.name for part in layer.numbers if part.verdict == "same"]
    parts: list[Any] = [heading, *_findings(layer.findings)]
    if table.row_count:
        parts.append(indented(table))
    if same:
        parts.append(indented(rich().Text(plain("the same: " + ", ".join(same)), style="dim")))
    return parts


def _findings(changes: Sequence[FindingChange]) -> list[Any]:
    parts: list[Any] = []
    for change in changes:
        found = change.finding
        line = rich().Text(change.verdict, style=STYLES[change.verdict])
        line.append(f"  {plain(found.severity)} {plain(found.rule)}", style="bold")
        line.append(f" ({plain(place(found))}): {change.words}")
        if change.doubt:
            line.append(f"; {plain(change.doubt)}")
        parts += [indented(line), indented(rich().Text(plain(found.message)), by=4)]
        changed = [part for part in change.evidence if part.verdict != "same"]
        if changed:
            parts.append(indented(_numbers(changed), by=4))
    return parts


def _numbers(numbers: Sequence[Number]) -> Any:
    table = rich().Table(box=None, pad_edge=False, show_header=False)
    for part in numbers:
        table.add_row(
            rich().Text(part.verdict, style=STYLES[part.verdict]),
            rich().Text(plain(part.name)),
            rich().Text(plain(moved(part.before, part.after, part.unit, part.name))),
        )
    return table
