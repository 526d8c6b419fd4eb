"""In a notebook: short texts, small pictures, and nothing that is fetched."""

import copy
import json
import pickle
import re

import pytest
import torch

import retrograde
from retrograde import charts
from retrograde.errors import NonFiniteError, RecordingError
from retrograde.report import compare
from support.browser import in_a_browser


def loss_of(model, x):
    return model(x)[0][-1].square().mean()


@pytest.fixture(scope="module")
def results():
    """Everything that a user holds, of a pass that is long enough to be a nuisance."""
    torch.manual_seed(0)
    model, x = torch.nn.LSTM(2, 9), torch.randn(130, 3, 2)
    with retrograde.record(model) as recording:
        loss_of(model, x).backward()
    flow = retrograde.decompose(recording)
    report = retrograde.diagnose(model, x, loss_of, needs_lag=100, remedies="pass")
    return {
        "Recording": recording,
        "Recorded": recording["LSTM"],
        "Flow": flow,
        "Parts": flow.by_time(),
        "Report": report,
        "Finding": report.findings[0],
        "Comparison": compare(report, report),
        "Spectrum": retrograde.spectrum(recording, n=3),
    }


NAMES = "Recording Recorded Flow Parts Report Finding Comparison Spectrum".split()


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_an_object_is_short(results, name):
    text = repr(results[name])
    assert type(results[name]).__name__ == name
    assert text.startswith(name)
    assert len(text.splitlines()) <= 10 and len(text) < 1500


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_shows_it_without_a_network(results, name):
    shown = results[name]._repr_html_()
    assert len(shown) < 100_000
    assert not re.search(r"https?:|<script", shown)
    drawn = "data:image/png;base64," in shown
    assert drawn == (name in ("Flow", "Parts", "Report", "Finding", "Spectrum"))


def test_text_in_html_is_text(results):
    model = torch.nn.ModuleDict({"<b>&": torch.nn.GRU(2, 3)})
    with retrograde.record(model) as recording:
        model["<b>&"](torch.ones(4, 1, 2))[0].sum().backward()
    for shown in (recording._repr_html_(), recording.only()._repr_html_()):
        assert "&lt;b&gt;&amp;" in shown and "<b>" not in shown


def test_a_summary_is_the_flows_own_numbers(results):
    flow = results["Flow"]
    summary = flow.summary()
    assert (summary.reach, summary.half_life) == (flow.reach, flow.half_life)
    assert summary.near == float(flow.by_lag(bins=(0, 11)).share[0])
    monitor = retrograde.Monitor(torch.nn.Identity())
    assert monitor.needs_lag is None and summary.at(5) == pytest.approx(
        float(flow.by_time().log2_mean_by_lag[5] - flow.by_time().log2_mean_by_lag[0])
    )
    lines = str(summary).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "reach",
        "half-life",
        "near lags",
        "carousel",
        "growth",
    ]
    assert f"{flow.reach} of 129 steps" in lines[0]
    plain = torch.nn.RNN(2, 3)
    with retrograde.record(plain) as recording:
        plain(torch.ones(6, 1, 2))[0][-1].sum().backward()
    assert "carousel" not in str(retrograde.decompose(recording).summary())


def test_a_chart_offers_its_spec_and_a_picture(results):
    for chart in (results["Flow"].chart(), results["Parts"].chart()):
        bundle = chart._repr_mimebundle_()
        vega, picture, text = bundle
        assert vega.startswith("application/vnd.vegalite.v") and picture == "image/png"
        text = bundle[vega]["config"].pop("text")
        assert bundle[vega] == chart.to_dict() and text == {"color": "#7f7f7f"}
        assert len(bundle[picture]) < 40_000
        assert not re.search(r"https?://(?!vega.github.io/schema)", json.dumps(bundle))


def test_polars_reads_the_table_as_it_is(results):
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(results["Flow"].by_lag().to_dataframe())
    assert frame.columns == ["first_lag", "last_lag", "log2", "norm", "share"]
    assert frame["share"].sum() == pytest.approx(1)


def test_a_chart_is_still_altairs(results, tmp_path):
    import altair

    chart = results["Flow"].chart()
    assert isinstance(chart, altair.LayerChart)
    narrow = chart.properties(width=200)
    assert "image/png" in narrow._repr_mimebundle_()
    assert isinstance(chart | chart, altair.HConcatChart)
    assert copy.deepcopy(chart).to_dict() == chart.to_dict()
    assert pickle.loads(pickle.dumps(chart)).to_dict() == chart.to_dict()
    with altair.renderers.enable("json"):
        assert "application/json" in chart._repr_mimebundle_()[0]
    with pytest.raises(AttributeError):
        _ = charts.figure.nothing_of_the_kind


NOTEBOOK = """
import torch, retrograde
torch.manual_seed(0)
model, x = torch.nn.LSTM(2, 9), torch.randn(130, 3, 2)
loss_fn = lambda model, x: model(x)[0][-1].square().mean()
with retrograde.record(model) as recording:
    loss_fn(model, x).backward()
flow = retrograde.decompose(recording)
# ---
flow
# ---
flow.by_lag().chart()
# ---
retrograde.diagnose(model, x, loss_fn, needs_lag=100, remedies="pass")
"""


@in_a_browser
def test_a_notebook_that_was_run_is_small_and_opens_without_a_network(browser, tmp_path):
    """Executed by Jupyter's own client, written as a page by its own writer, opened offline."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    from nbconvert import HTMLExporter

    cells = [nbformat.v4.new_code_cell(code.strip()) for code in NOTEBOOK.split("# ---")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    sizes = [len(json.dumps(cell.outputs)) for cell in cells]
    assert max(sizes) < 300_000 and sum(sizes) < 400_000
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    (tmp_path / "notebook.html").write_text(page)

    context = browser.new_context(offline=True)
    shown = context.new_page()
    asked = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(f"file://{tmp_path}/notebook.html")
    loaded = "[...document.images].map((image) => image.complete && image.naturalWidth > 300)"
    assert shown.evaluate(loaded) == [True, True, True]
    assert not [url for url in asked if url.startswith("http")]
    context.close()


def test_what_cannot_be_shown_gives_its_reason():
    """An error in a notebook's display would be a traceback of ours in the user's cell."""
    model = torch.nn.LSTM(2, 3)
    with retrograde.record(model) as recording:
        model(torch.ones(3, 1, 2))[0].sum().backward()

    def refused():
        raise RecordingError("'bad' was called in two ways")

    recording.fill("bad", refused)
    shown = recording._repr_html_()
    assert "LSTM" in shown and "was called in two ways" in shown
    flow = retrograde.decompose(recording["LSTM"])

    def fails():
        raise NonFiniteError("dL/dh is nan first at step 2", None)

    object.__setattr__(flow, "summary", fails)
    shown = flow._repr_html_()
    assert "Flow of" in shown and "dL/dh is nan" in shown and "<img" not in shown
