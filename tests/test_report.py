from __future__ import annotations

import gzip
import html.parser
import json
import re
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest

from mlflow_opt.measurement.scoring import score
from mlflow_opt.records import Criterion, Quantity, Task
from mlflow_opt.reports import report, report_charts, report_sections
from mlflow_opt.reports.report import Exhibit, Row
from mlflow_opt.reports.report_calibration import reliability
from mlflow_opt.reports.report_page import Chart, chart
from mlflow_opt.runs import outcome
from tests.closings import POLICY, closing, nothing_chosen, proved, scored


class _Text(html.parser.HTMLParser):
    """The words of a page, and its open elements."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(value) for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "link", "wbr", "br", "rect", "line", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line", "circle"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)


def _read(page: str) -> _Text:
    found = _Text()
    found.feed(page)
    assert found.open == []
    return found


def test_recipe_page_says_what_was_decided_and_why_when_it_passed() -> None:
    page = _read(report_sections.recipe_page(closing(), proved(), POLICY))
    said = " ".join(" ".join(page.words).split())
    assert "quick was chosen: the lowest latency of the 2 of 4 variants that meet the policy on the selection rows." in said
    assert "the verdict is PASS. It may be promoted. It is churn version 3." in said
    assert "8.00x" in said
    assert "[7.00x, 9.10x]" in said
    assert "slice/two_year/drop_f1 must be at most 0.03" in said
    assert 'contract == "Two year"' in said
    assert "misses: drop_roc_auc 0.14 > 0.01" in said
    assert "no drop-in: the output is called 'a & b'" in said
    assert "Expected calibration error" in said
    assert "mlflow-opt promote --model models:/churn/3 --data 'hold out.parquet'" in said
    assert "mlflow-opt rollback --name churn" in said
    assert "mlflow run . -e compile -P model=models:/churn/2 -P 'data=hold out.parquet'" in said


def test_recipe_page_needs_no_network_when_opened() -> None:
    text = report_sections.recipe_page(closing(), proved(), POLICY)
    assert [link for link in _read(text).links if not link.startswith("data:")] == []
    packed = re.search(r'id="plotly">([^<]*)<', text)
    assert packed is not None
    assert b"newPlot" in gzip.decompress(b64decode(packed[1]))
    # The plotly package holds one bundle of 4.8 MB.
    assert len(text) < 2_500_000


def test_recipe_page_is_the_same_bytes_when_written_twice() -> None:
    pages = [report_sections.recipe_page(closing(), proved(), POLICY) for _ in range(2)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("also", "word", "first"),
    [
        ({"speedup": Quantity(1.0, 0.9, 1.1, 400)}, "FAIL", "speedup must be at least 1.2"),
        ({"drop_roc_auc": Quantity(0.001, -0.02, 0.02, 90)}, "INCONCLUSIVE", "drop_roc_auc must be at most 0.01"),
        ({"latency_p99_ms": Quantity(float("nan"), float("nan"), float("nan"), 400)}, "INCONCLUSIVE", "latency_p99_ms must be at most 8"),
    ],
    ids=["slow", "too few rows", "not finite"],
)
def test_recipe_page_shows_the_decisive_criterion_first_when_it_did_not_pass(also: dict[str, Quantity], word: str, first: str) -> None:
    page = _read(report_sections.recipe_page(closing(version=""), proved(POLICY, **also), POLICY))
    said = " ".join(" ".join(page.words).split())
    assert f"the verdict is {word}" in said
    assert "It was not registered" in said
    rules = said.partition("criterion by criterion")[2]
    assert rules.index(first) < rules.index("PASS")


def test_recipe_page_says_which_was_nearest_when_nothing_was_chosen() -> None:
    page = _read(report_sections.recipe_page(nothing_chosen(), None, POLICY))
    said = " ".join(" ".join(page.words).split())
    assert "nothing judged" in said
    assert "Nearest: rash" in said
    assert "criterion by criterion" not in said


def test_recipe_page_says_that_the_last_was_taken_when_it_is_of_a_chain() -> None:
    shown = replace(
        closing(aim="last"),
        exhibits=(Exhibit("What each step brought", "F1:\n\n| after | f1 |\n|---|---|\n| [tune](#/x) | 0.6 [0.5, 0.7] |", "<i>chart</i>"),),
    )
    page = report_sections.recipe_page(shown, proved(), POLICY)
    assert "quick was chosen: the last made of the 2 of 4 variants that meet the policy" in page
    assert "<h2>What each step brought</h2><i>chart</i><p>F1:</p>" in page
    assert '<td class="text">tune</td><td>0.6 <small>[0.5, 0.7]</small></td>' in page
    said = outcome.describe(shown, proved())
    assert "| [tune](#/x) | 0.6 [0.5, 0.7] |" in said
    assert "| tune | 0.6 [0.5, 0.7] |" in outcome.describe(shown, proved(), plain=True)


def test_recipe_page_says_so_when_a_first_model_was_not_judged() -> None:
    said = " ".join(_read(report_sections.recipe_page(closing(version="1", aim="first"), None, POLICY)).words)
    assert "It is a first model" in said
    assert "0.8390" in said


@pytest.mark.parametrize("name", ["", "churn"], ids=["unregistered", "registered"])
def test_next_commands_measure_again_before_promoting_when_undecided(name: str) -> None:
    undecided = proved(speedup=Quantity(1.25, 1.1, 1.4, 40))
    ended = closing(version="3" if name else "")
    said = " ".join(command for _, command in report_sections.next_commands(ended, undecided))
    assert "promote" not in said
    assert ("mlflow-opt gate" in said) is bool(name)


@pytest.mark.parametrize(
    ("side", "bound", "shaded"),
    [("min", 1.2, "left"), ("max", 0.01, "right")],
    ids=["at least", "at most"],
)
def test_span_shades_the_side_that_does_not_hold_when_drawn(side: str, bound: float, shaded: str) -> None:
    criterion = Criterion("speedup", "min" if side == "min" else "max", bound, "speedup")
    drawn = report_charts.span(Quantity(8.0, 7.0, 9.0, 9), criterion)
    rect = re.search(r'class="out" x="([\d.]+)" y="4" width="([\d.]+)"', drawn)
    line = re.search(r'class="bound" x1="([\d.]+)"', drawn)
    bar = re.search(r'class="bar" x1="([\d.]+)" x2="([\d.]+)"', drawn)
    assert rect
    assert line
    assert bar
    begin, width, at = float(rect[1]), float(rect[2]), float(line[1])
    assert (begin, begin + width) == pytest.approx((0, at) if shaded == "left" else (at, 340), abs=0.2)
    assert 0 <= float(bar[1]) < float(bar[2]) <= 340


def test_span_is_drawn_when_value_and_bound_are_one() -> None:
    assert "nan" not in report_charts.span(Quantity(0.0, 0.0, 0.0, 9), Criterion("label_flips", "max", 0.0, "label_flips"))


def test_reliability_is_on_the_diagonal_when_probabilities_are_right() -> None:
    bins = reliability(scored(0))
    assert sum(one.rows for one in bins) == 400
    assert len(bins) == 10
    # Of 10 intervals at 95% one or two may miss.
    assert sum(one.lo <= one.predicted <= one.hi for one in bins) >= 8
    sure = reliability(scored(0, 6.0))
    assert sum(one.lo <= one.predicted <= one.hi for one in sure) < 6


def test_reliability_keeps_rows_of_one_probability_together_when_they_fill_bins() -> None:
    said = np.repeat([0.2, 0.8], 50)
    bins = reliability(score(Task("binary", (0, 1)), np.arange(100) % 2, np.column_stack([1 - said, said])))
    assert [(round(one.predicted, 6), one.rows) for one in bins] == [(0.2, 50), (0.8, 50)]


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_reliability_asks_about_the_answer_when_there_are_several_classes(kind: str) -> None:
    if kind == "regression":
        assert reliability(score(Task("regression"), np.arange(5.0), np.arange(5.0))) == ()
        return
    outputs = np.tile([0.1, 0.2, 0.7], (30, 1))
    (one,) = reliability(score(Task("multiclass", (0, 1, 2)), np.repeat([0, 1, 2], 10), outputs))
    assert (round(one.predicted, 6), round(one.observed, 6)) == (0.7, round(1 / 3, 6))


def test_quality_over_marks_the_front_when_drawn() -> None:
    page = report_sections.recipe_page(closing(), None, POLICY)
    specs = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]
    line = next(trace for trace in specs[0]["data"] if trace["name"] == "Pareto front")
    assert line["x"] == [0.5, 0.6, 1.0, 2.0, 8.0]
    assert {trace["name"] for trace in specs[0]["data"]} == {"Pareto front", "baseline", "chosen", "passes", "left out"}


def test_chart_is_json_when_a_value_is_not_finite() -> None:
    drawn = chart(Chart([{"x": [1.0, float("nan")], "error": {"array": (float("inf"),)}}], {}), "x")
    spec = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', drawn)[0])
    assert spec["data"] == [{"x": [1.0, None], "error": {"array": [None]}}]


def test_chart_cannot_end_its_script_when_a_name_holds_a_tag() -> None:
    drawn = chart(Chart([{"name": "</script><b>"}], {}), "x")
    assert drawn.count("</script>") == 1


def test_describe_keeps_what_matters_when_there_are_many_variants() -> None:
    many = [*closing().rows, *(Row(f"trial_{i}", {"roc_auc": 0.8}, standing="misses: speedup 1 < 2") for i in range(200))]
    text = outcome.describe(report.Closing("tune", {"data": "x"}, many, "roc_auc", (), "", ""), None)
    assert len(text) < 8000
    assert "| quick" in text
    assert "180 more variants are in report.html." in text
