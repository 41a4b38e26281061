"""The board as tables, pictures and a page."""

from leaderboard.show.pictures import draw
from leaderboard.show.render import render_readme, render_site
from leaderboard.show.table import Table, make_table

__all__ = ["Table", "draw", "make_table", "render_readme", "render_site"]
