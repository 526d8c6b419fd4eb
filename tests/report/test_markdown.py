"""The report as Markdown: what the page says, and nothing that a name of the user's could do."""

import re
from dataclasses import replace

import pytest
import torch

import retrograde
from retrograde.diagnosis import Trial

markdown = pytest.importorskip("markdown")
HOSTILE = "<script>x</script> | a *b* _c_ `d` [e](http://f) # g\n## h ``` ~~i~~ <!-- j"


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    return retrograde.diagnose(
        torch.nn.LSTM(2, 8),
        torch.randn(40, 3, 2),
        lambda model, x: model(x)[0][-1].square().mean(),
        remedies="pass",
        needs_lag=30,
    )


def shown(text):
    return markdown.markdown(text, extensions=["tables", "fenced_code"])


def test_it_says_what_the_report_says(report):
    page = shown(report.to_markdown())
    words = " ".join(re.sub(r"<[^>]*>", " ", page).replace("\\>", ">").split())
    for finding in report.findings:
        assert f"{finding.severity}: {finding.rule}" in words
        for part in (finding.message, *finding.causes, *finding.advice):
            assert " ".join(part.split()) in words
    assert page.count("<table>") == 2
    assert page.count("<tr>") == 2 + len(report.layers) + len(report.checked)
    code = re.findall(r"```python\n(.*?)```", report.to_markdown(), re.DOTALL)
    assert all("retrograde.nn.initialise" in lines for lines in code) and code


def test_hostile_text_is_text(report):
    first = report.findings[0]
    trial = Trial(HOSTILE, HOSTILE, HOSTILE, 1.0, 2.0, note=HOSTILE, healthy=True)
    bad = replace(first, message=HOSTILE, causes=(HOSTILE,), advice=(HOSTILE,), trials=(trial,))
    layer = replace(report.layers[0], name=HOSTILE)
    hostile = replace(report, findings=(bad,), layers=(layer,), notes=(HOSTILE,), title=HOSTILE)
    text = hostile.to_markdown()
    page = shown(text)
    assert page.count("<h2>") == 3 and page.count("<h1>") == 1  # the finding, layers, checks
    assert not re.search(r"<script|<em>|<strong>|<a |<!--", page)
    assert text.count("```") in (0, 2)
    assert page.count("<tr>") == 2 + 1 + len(hostile.checked)
