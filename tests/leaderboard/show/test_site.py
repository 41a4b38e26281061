"""The page: whole by itself, and it sorts in a real browser."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from leaderboard.show.render import SITE, render_readme, render_site
from leaderboard.show.table import make_table
from leaderboard.submission.record import read_record
from leaderboard.submission.submission import open_row
from tests.leaderboard.conftest import Small

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

# The browser has no sandbox for root.
AS_ROOT = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []


def test_the_page_asks_for_nothing_from_outside(made: Small) -> None:
    page = made.board / SITE
    rows = sorted((page.parent / "rows").rglob("*.html"))
    assert len(rows) == 3
    for path in (page, *rows):
        text = path.read_text()
        for address in re.findall(r'(?:src|href)="([^"]*)"', text):
            assert address.startswith("data:image/") or not re.match(r"\w+:|//", address), address
            file, _, anchor = address.partition("#")
            if file.endswith("docs/flags.md"):  # of the repository, which this board is not in
                continue
            if file and not file.startswith("data:"):
                assert (path.parent / file).is_file(), address
            if anchor and not file:
                assert f'id="{anchor}"' in text, address
        assert "@import" not in text
        assert "url(" not in text


def test_the_page_has_the_numbers_of_the_tables(made: Small) -> None:
    text = (made.board / SITE).read_text()
    rows = re.findall(r"^\|\s+\d+ \|.*$", (made.board / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 3
    for row in rows:
        for number in re.findall(r"\d+\.\d(?: \[\d+\.\d, \d+\.\d\])?", row):
            assert number in text


def test_texts_of_users_are_shown_as_they_are(made: Small) -> None:
    """Records hold no markup; where they did, it would do nothing."""
    hostile = "<i>&x|`y`\nz"
    (task,) = made.tasks.values()
    table = make_table(task, [open_row(made.rows / "vanilla", made.tasks)])
    (line,) = table.lines
    told = dict.fromkeys(table.papers[0], hostile)
    record = line.record.model_copy(update={"row": hostile, "about": hostile})
    cells = {name: text if name in line.links else hostile for name, text in line.cells.items()}
    links = line.links | {"defense": {hostile: "README.md"}}
    line = dataclasses.replace(line, record=record, cells=cells, links=links)
    table = dataclasses.replace(
        table, lines=[line], caption=hostile, sources=[hostile], claims=[hostile], papers=[told]
    )
    page, text = render_site([table]), render_readme([table])
    assert "<i>" not in page
    assert page.count("&lt;i&gt;&amp;x|`y`") >= 6
    shown = r"&lt;i&gt;&amp;x\|\`y\` z"
    assert "<i>" not in text
    assert f"| [{shown}](rows/digits/vanilla/README.md)" in text
    for start in ("> ", "[1] ", "- ", f"- **{shown}**: "):
        assert f"{start}{shown}" in text


def _shown(page: Path, tmp_path: Path, script: str) -> str:
    """The page, as a browser has it after a script has run."""
    copy = page.parent / "scripted.html"
    copy.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
    command = [
        BROWSER, *AS_ROOT, "--headless", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return ended.stdout


@pytest.mark.skipif(BROWSER is None, reason="no browser: install Debian's chromium to run it")
def test_a_click_on_a_heading_sorts(small: Small, tmp_path: Path) -> None:
    click = """
        const by = name => [...document.querySelectorAll("th button.sort")]
            .find(button => button.textContent === name).click();
        const state = () => [...document.querySelectorAll("tbody.row tr")]
            .map(row => row.cells[1].textContent.trim()).join(",");
        const seen = [state()];
        for (const name of ["natural", "natural", "defense", "certified", "certified"]) {
            by(name);
            seen.push(state());
        }
        window.addEventListener("load", () => {
            const widths = [...document.images].map(image => image.naturalWidth);
            document.title = JSON.stringify([seen, widths]);
        });
    """
    found = re.search(r"<title>(.*?)</title>", _shown(small.board / SITE, tmp_path, click))
    assert found
    seen, widths = json.loads(found[1])
    records = [read_record(folder) for folder in small.rows.iterdir()]
    natural = {record.row: record.numbers.natural for record in records}
    for order, falls in ((seen[1], True), (seen[2], False)):
        shares = [natural[row] for row in order.split(",")]
        assert shares == sorted(natural.values(), reverse=falls)
    assert seen[3].split(",") == ["vanilla", "NBR", "L2NNN"]
    # Up or down, what has no number comes last.
    assert seen[4].split(",")[-1] == seen[5].split(",")[-1] == "vanilla"
    assert seen[4].split(",")[:2] == seen[5].split(",")[1::-1]
    assert len(widths) == 2
    assert min(widths) > 100
