"""The pages in a real browser: no complaint on its console, nothing asked of the network, as wide as the window, on paper too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from mlflow_opt.reports import report_sections
from mlflow_opt.reports.report_comparison import Group
from mlflow_opt.reports.report_comparison_page import page_of
from recipes.compare import grouped, pareto_front, recommend
from tests import browser
from tests.closings import POLICY, closing, proved
from tests.stored import POLICY as COMPARED
from tests.stored import evidence_of, result

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.PROGRAM, reason="needs Chromium: Debian's package `chromium`"),
]
DRAWN = "document.body.dataset.drawn"


@pytest.fixture(scope="module")
def shown() -> Iterator[browser.Browser]:
    with browser.open_browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=["recipe", "comparison"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / f"{request.param}.html"
    path.write_text(_comparison() if request.param == "comparison" else report_sections.recipe_page(closing(), proved(), POLICY))
    return path


def _comparison() -> str:
    members = [result("baseline", 10), *(result(f"v{i}", i + 1.0, 0.8 + i / 100, judged=evidence_of(5, 0.0)) for i in range(4))]
    ((name, group),) = grouped(members).items()
    made = Group(name, tuple(group), pareto_front(group), recommend(group, COMPARED, "latency"), COMPARED)
    return page_of([made], ["tune-1: it ended FAILED."])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "phone"), [(1200, False), (390, True)], ids=["desktop", "phone"])
def test_page_fits_and_draws_without_complaint_when_shown(
    shown: browser.Browser, page: Path, width: int, phone: bool, scheme: Literal["light", "dark"]
) -> None:
    shown.complaints.clear()
    shown.look(width, 850, scheme, phone=phone)
    shown.open(page.as_uri(), DRAWN)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate("[...document.querySelectorAll('.chart')].every(one => one.querySelector('svg.main-svg') !== null)")
    # The colours follow: ink on paper, whichever is which.
    paper, ink = shown.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
    assert (_brightness(paper) > _brightness(ink)) == (scheme == "light")
    tick = "getComputedStyle(document.querySelector('.xtick text')).fill"
    assert _brightness(shown.evaluate(tick)) == pytest.approx(_brightness(ink), abs=5)
    assert shown.complaints == []
    assert shown.requested == []


def test_page_prints_light_with_everything_open_when_printed(shown: browser.Browser, page: Path, tmp_path: Path) -> None:
    shown.complaints.clear()
    shown.look(1200, 850, "dark")
    shown.open(page.as_uri(), DRAWN)
    pdf = shown.pdf(tmp_path / "page.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert shown.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    assert shown.complaints == []


def test_page_keeps_its_tables_when_scripts_are_off(shown: browser.Browser, page: Path) -> None:
    shown.call("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        shown.look(1200, 850)
        shown.open(page.as_uri())
        tree = shown.call("DOM.getDocument", {"depth": -1})
        assert str(tree).count("'TD'") > 20
    finally:
        shown.call("Emulation.setScriptExecutionDisabled", {"value": False})


def _brightness(colour: str) -> float:
    return sum(float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]) / 3
