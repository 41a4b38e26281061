"""Pages in a browser: no request, no error, no sideways scrolling, and clicks do what they say.

They run where Chromium and playwright are, and leave pictures in BESTATTACK_SCREENSHOTS, if that is
set.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark.pages.pages import make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

WIDE, NARROW = 1400, 390


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages that are looked at, by name."""
    run = make_run(tmp_path_factory.mktemp("browser") / "run")
    root = Path(__file__).parents[3]
    return {"run": run / "report.html", "board": root / "leaderboard" / "site" / "index.html"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


class Visit:
    """A page that is open, and what went wrong in it."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str = "light") -> None:
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
        )
        self.wrong: list[str] = []
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", self._ask)
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _ask(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            self.wrong.append(f"request: {request.url}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", ["run", "board"])
def test_a_page_is_clean(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    visit = Visit(browser, pages[name], width, scheme)
    page = visit.page
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    # axe would fetch the style sheet, which a page that is opened as a file may not.
    results = axe.Axe().run(page, options={"resultTypes": ["violations"], "preload": False})
    serious = [
        (found["id"], found["nodes"][0]["html"][:200])
        for found in results.response["violations"]
        if found["impact"] in ("serious", "critical")
    ]
    assert serious == []
    if home := os.environ.get("BESTATTACK_SCREENSHOTS"):
        page.screenshot(path=f"{home}/{name}-{width}-{scheme}.png", full_page=True)
    assert visit.wrong == []
    page.close()


def test_headings_sort_and_defenses_fold(browser: Any, pages: dict[str, Path]) -> None:
    page = Visit(browser, pages["run"], WIDE).page
    table = page.locator("table").first
    heading = table.locator("thead th", has_text="best-attack")
    for direction, sign in (("descending", -1), ("ascending", 1)):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        column = heading.evaluate("cell => cell.cellIndex")
        shown = [
            float(row.locator("td").nth(column).inner_text().split()[0])
            for row in table.locator("tbody > tr:not(.folded)").all()
            if row.is_visible() and row.locator("td").count() > column
        ]
        assert shown == sorted(shown, key=lambda share: sign * share)
    fold = table.locator("button.fold").first
    folded = page.locator(f"#{fold.get_attribute('aria-controls')}")
    assert not folded.is_visible()
    fold.click()
    assert folded.is_visible()
    assert "ddn" in folded.inner_text()
    fold.click()
    assert not folded.is_visible()
    page.close()


def test_examples_are_filtered(browser: Any, pages: dict[str, Path]) -> None:
    page = Visit(browser, pages["run"], NARROW).page
    items = page.locator(".gallery li")
    every = items.count()
    page.locator('[data-by="attack"]').select_option("ddn/steps=20")
    shown = [item for item in items.all() if item.is_visible()]
    assert 0 < len(shown) <= every
    assert all("ddn" in item.inner_text() for item in shown)
    assert page.locator("output").inner_text() == f"{len(shown)} of {every} shown"
    page.locator('[data-by="distance"]').evaluate(
        "input => { input.value = 0; input.dispatchEvent(new Event('input')); }"
    )
    assert not any(item.is_visible() for item in items.all())
    page.close()


def test_curves_are_drawn_with_every_defense(browser: Any, pages: dict[str, Path]) -> None:
    page = Visit(browser, pages["run"], WIDE).page
    assert page.locator("#curves .scatterlayer .trace").count() == 3  # of which one is certified
    assert "plain" in page.locator("#curves .legend").text_content()
    page.close()
