"""Pages of HTML that need nothing but themselves: templates, look and scripts in one file."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_HOME = Path(__file__).parent

# Interactive pictures: plotly.js, the part with lines, points and bars. Its version and licence
# stand in the file and beside it.
PLOTLY = _HOME / "static" / "plotly-basic.min.js"


def rendered(name: str, homes: Sequence[Path] = (), **values: object) -> str:
    """A template with some values in it, which are escaped in HTML.

    homes  folders of templates, beside this room's own.
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
    return environment.get_template(name).render(plotly=_plotly, **values)


def _plotly() -> Markup:
    """The library of interactive pictures, to stand in a script of a page."""
    text = PLOTLY.read_text(encoding="utf-8")
    # The end of a script's element would end it within a text of the library too.
    return Markup(text.replace("</script", "<\\/script"))
