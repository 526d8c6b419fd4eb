"""Draws docs/images/vocabulary.svg: an unrolled LSTM, its routes, and two ways back from one loss.

    python scripts/vocabulary_drawing.py

The drawing shows five steps. The loss enters at step t = 4, the weights looked at are used at step
k = 1. Grey is what the forward pass computes; the coloured lines are paths of the gradient, which
run the other way.
"""

from pathlib import Path

FILE = Path(__file__).parent.parent / "docs" / "images" / "vocabulary.svg"

STEPS, ENTRY, USE = 5, 4, 1
WIDTH, HEIGHT = 1000, 560
INK, FAINT, CAROUSEL, CROSSING = "#333333", "#9aa0a6", "#c96f0a", "#7a5bd0"

STYLE = f"""
text {{ font: 15px sans-serif; fill: {INK}; }}
.small {{ font-size: 13px; }}
.node {{ fill: white; stroke: {INK}; stroke-width: 1.5; }}
.edge {{ fill: none; stroke: {FAINT}; stroke-width: 1.5; marker-end: url(#forward); }}
.path {{ fill: none; stroke-width: 4; stroke-linejoin: round; opacity: 0.9; }}
.carousel {{ stroke: {CAROUSEL}; marker-end: url(#carousel); }}
.crossing {{ stroke: {CROSSING}; marker-end: url(#crossing); stroke-dasharray: 10 4; }}
.ruler {{ fill: none; stroke: {INK}; }}
"""

Point = tuple[float, float]


def column(k: int) -> float:
    """Where step k stands."""
    return 95 + 172 * k


def c(k: int) -> Point:
    """The cell state."""
    return column(k) + 56, 110


def a(k: int) -> Point:
    """The pre-activations of the gates."""
    return column(k), 215


def h(k: int) -> Point:
    """The hidden state."""
    return column(k) + 56, 320


def x(k: int) -> Point:
    """The input."""
    return column(k), 410


def text(at: Point, words: str, kind: str = "", anchor: str = "middle", colour: str = "") -> str:
    """Words around a point; an underscore begins an index."""
    before, _, index = words.partition("_")
    if index:
        words = f'{before}<tspan dy="4" font-size="11">{index}</tspan>'
    fill = f' style="fill: {colour}"' if colour else ""
    return (
        f'<text class="{kind}" x="{at[0]:g}" y="{at[1] + 5:g}" text-anchor="{anchor}"{fill}>'
        f"{words}</text>"
    )


def circle(at: Point, words: str) -> str:
    """A state."""
    return f'<circle class="node" cx="{at[0]:g}" cy="{at[1]:g}" r="19"/>' + text(at, words)


def box(at: Point, words: str, width: float = 44) -> str:
    """What is computed inside a step, or given."""
    left, top = at[0] - width / 2, at[1] - 17
    rectangle = (
        f'<rect class="node" x="{left:g}" y="{top:g}" width="{width:g}" height="34" rx="4"/>'
    )
    return rectangle + text(at, words)


def line(points: list[Point], kind: str, gap: float = 23) -> str:
    """A line through points, which ends a little before the last of them."""
    (x0, y0), (x1, y1) = points[-2:]
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    points = [*points[:-1], (x1 - (x1 - x0) * gap / length, y1 - (y1 - y0) * gap / length)]
    return (
        f'<polyline class="{kind}" points="' + " ".join(f"{u:g},{v:g}" for u, v in points) + '"/>'
    )


def beside(points: list[Point], dx: float, dy: float) -> list[Point]:
    """The same points, moved."""
    return [(u + dx, v + dy) for u, v in points]


def marker(name: str, colour: str, size: float) -> str:
    """The head of an arrow."""
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="{size:g}" '
        f'markerHeight="{size:g}" orient="auto">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{colour}"/></marker>'
    )


def render() -> str:
    """The drawing as SVG."""
    parts = [
        marker("forward", FAINT, 7),
        marker("carousel", CAROUSEL, 3.5),
        marker("crossing", CROSSING, 3.5),
    ]
    for k in range(STEPS):
        parts += [
            line([x(k), a(k)], "edge"),
            line([a(k), c(k)], "edge"),
            line([c(k), h(k)], "edge"),
        ]
        if k + 1 < STEPS:
            parts += [line([c(k), c(k + 1)], "edge"), line([h(k), a(k + 1)], "edge", 27)]
    loss = (h(ENTRY)[0] + 95, h(ENTRY)[1])
    parts.append(line([h(ENTRY), loss], "edge", 20))

    straight = [loss, h(ENTRY), c(ENTRY), c(USE), a(USE)]
    crossed = [loss, h(4), c(4), a(4), h(3), c(3), c(2), a(2), h(1), c(1), a(1)]
    parts.append(line(beside(straight, -5, -6), "path carousel"))
    parts.append(line(beside(crossed, 6, 7), "path crossing", 32))

    for k in range(STEPS):
        parts += [circle(c(k), f"c_{k}"), circle(h(k), f"h_{k}"), box(a(k), f"a_{k}")]
        parts += [box(x(k), f"x_{k}", 38), text((column(k), 455), f"step {k}", "small")]
    parts.append(box(loss, "L", 34))

    parts += [
        text((column(0) + 142, 88), "carousel", "small"),
        text((column(0) - 12, 300), "W", "small"),
        text((column(0) + 128, 292), "R", "small"),
        text((c(0)[0] + 8, 175), "readout", "small", "start"),
        text((loss[0], loss[1] - 50), "the loss enters", "small"),
        text((loss[0], loss[1] - 33), "entry step t = 4", "small"),
    ]
    left, right, low = column(USE), column(ENTRY), 482
    middle = (left + right) / 2
    parts.append(
        f'<path class="ruler" d="M{left:g},{low - 8} v8 H{right:g} v-8 M{middle:g},{low} v6"/>'
    )
    parts += [
        text((middle, low + 18), "lag t - k = 3 steps"),
        text((left, low + 18), "use step k = 1", "small"),
        text((20, 26), "no crossing: by the carousel alone", "", "start", CAROUSEL),
        text(
            (20, 50),
            "two crossings: through the recurrent weights R at steps 4 and 2",
            "",
            "start",
            CROSSING,
        ),
        text(
            (20, 540),
            "Both paths belong to the contribution C[4,1]: the loss enters at t = 4, the weights "
            "are used at k = 1.",
            "small",
            "start",
        ),
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="An unrolled LSTM with two paths of the gradient from step 4 back to step 1">'
        f"\n<style>{STYLE}</style>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
