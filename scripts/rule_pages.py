"""Writes docs/rules/: a page for each rule of the diagnosis, from the table that it runs on.

python scripts/rule_pages.py
"""

from pathlib import Path

from retrograde.diagnosis import RULES, explain

FOLDER = Path(__file__).parent.parent / "docs" / "rules"

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


def render() -> dict[str, str]:
    """The pages by file name."""
    rows = "".join(
        f"| [{name}]({name}.md) | {rule.title} | {rule.kind} |\n" for name, rule in RULES.items()
    )
    pages = {f"{name}.md": explain(name) for name in RULES}
    return {"index.md": INDEX + rows, **pages}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for left in {path.name for path in FOLDER.iterdir()} - set(render()):
        (FOLDER / left).unlink()
    for name, text in render().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
