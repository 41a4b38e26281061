"""Pages of HTML: templates, look and scripts, which stand in the page itself, or beside a site's
pages once for all of them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HOME = Path(__file__).parent

# Interactive pictures: plotly.js, the part with lines, points and bars. Its version and licence
# stand in the file and beside it.
_PLOTLY = _HOME / "static" / "plotly-basic.min.js"

# What the pages of a site have in common.
_SHARED = (_PLOTLY, _HOME / "templates" / "page.css", _HOME / "templates" / "page.js")


def share_files(site: Path) -> None:
    """Copy what the pages of a site have in common into its folder."""
    site.mkdir(parents=True, exist_ok=True)
    for file in _SHARED:
        shutil.copyfile(file, site / file.name)


def rendered(name: str, homes: Sequence[Path] = (), site: str = "", **values: object) -> str:
    """A template with some values in it, which are escaped in HTML.

    homes  folders of templates, beside this room's own.
    site   of a page of a site: where the shared files are, seen from it. Any other page needs
           nothing but itself, and makes no request.
    """
    folders = [*homes, _HOME / "templates"]
    environment = Environment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        autoescape=".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(name).render(plotly=_plotly, site=site, **values)


def _plotly() -> Markup:
    """The library of interactive pictures, to stand in a script of a page."""
    text = _PLOTLY.read_text(encoding="utf-8")
    # The end of a script's element would end it within a text of the library too.
    return Markup(text.replace("</script", "<\\/script"))
