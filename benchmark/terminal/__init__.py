"""What commands print of results: pages of tables and sentences that fit a terminal."""

from benchmark.terminal.page import Grid, Page, Tone, Words, grid_of
from benchmark.terminal.printing import WIDTH, printed, text

__all__ = ["WIDTH", "Grid", "Page", "Tone", "Words", "grid_of", "printed", "text"]
