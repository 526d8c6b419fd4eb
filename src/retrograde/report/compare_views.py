"""A comparison for a terminal and as a page: settings first, then layer by layer."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from retrograde._optional import optional
from retrograde._terminal import as_text, plain
from retrograde.report.comparison import Comparison, FindingChange, LayerChange, Number
from retrograde.report.report import number
from retrograde.report.text import place

STYLES = {"better": "green", "worse": "bold red", "changed": "yellow", "same": "dim"}
CAUTION = "These settings differ, so that a change below may come from them:"


def text(comparison: Comparison) -> str:
    """The comparison as plain text, 120 columns wide."""
    return as_text(renderable(comparison))


def renderable(comparison: Comparison) -> Group:
    """The comparison as something that a rich console can print."""
    parts: list[RenderableType] = [
        Text(plain(title(comparison)), style="bold"),
        Text(comparison.summary),
    ]
    if comparison.settings:
        table = Table(box=None, pad_edge=False, show_header=False)
        for differs in comparison.settings:
            words = f"{differs.before} -> {differs.after}"
            if "\n" in words:
                words = f"{differs.before}\n-> {differs.after}"
            table.add_row(Text(plain(differs.name)), Text(plain(words)))
        parts += ["", Text(CAUTION, style="yellow"), Padding(table, (0, 0, 0, 2), expand=False)]
    if comparison.findings:
        parts += ["", *_findings(comparison.findings)]
    for layer in comparison.layers:
        parts += ["", *_layer(layer)]
    if any((comparison.only_before, comparison.only_after)):
        parts.append("")
    parts += [Text(plain(line)) for line in alone(comparison)]
    return Group(*parts)


def page(comparison: Comparison) -> str:
    """The comparison as one page that opens offline and needs no script."""
    with optional("the page of a comparison", "report"):
        from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("retrograde", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "place": place}
    return environment.get_template("compare.html.jinja").render(
        comparison=comparison, title=title(comparison), caution=CAUTION, alone=alone(comparison)
    )


def title(comparison: Comparison) -> str:
    """Which two are compared."""
    return "From {} to {}".format(*comparison.names)


def alone(comparison: Comparison) -> list[str]:
    """Layers that one report alone has, a line each."""
    before, after = comparison.names
    return [
        *(f"Only in {before}: {name}" for name in comparison.only_before),
        *(f"Only in {after}: {name}" for name in comparison.only_after),
    ]


def _layer(layer: LayerChange) -> list[RenderableType]:
    heading = Text(plain(layer.name), style="bold")
    if layer.same:
        heading.append(": nothing changed", style="dim")
        return [heading]
    table = _numbers([part for part in layer.numbers if part.verdict != "same"])
    same = [part.name for part in layer.numbers if part.verdict == "same"]
    parts: list[RenderableType] = [heading, *_findings(layer.findings)]
    if table.row_count:
        parts.append(Padding(table, (0, 0, 0, 2), expand=False))
    if same:
        parts.append(
            Padding(Text(plain("the same: " + ", ".join(same)), style="dim"), (0, 0, 0, 2))
        )
    return parts


def _findings(changes: Sequence[FindingChange]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for change in changes:
        found = change.finding
        line = Text(change.verdict, style=STYLES[change.verdict])
        line.append(f"  {plain(found.severity)} {plain(found.rule)}", style="bold")
        line.append(f" ({plain(place(found))}): {change.words}")
        if change.doubt:
            line.append(f"; {plain(change.doubt)}")
        parts += [Padding(line, (0, 0, 0, 2)), Padding(Text(plain(found.message)), (0, 0, 0, 4))]
        moved = [part for part in change.evidence if part.verdict != "same"]
        if moved:
            parts.append(Padding(_numbers(moved), (0, 0, 0, 4), expand=False))
    return parts


def _numbers(numbers: Sequence[Number]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for part in numbers:
        moved = f"{number(part.before)} -> {number(part.after)} {part.unit}".rstrip()
        table.add_row(
            Text(part.verdict, style=STYLES[part.verdict]),
            Text(plain(part.name)),
            Text(plain(moved)),
        )
    return table
