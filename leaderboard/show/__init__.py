"""The board as tables, pictures and a page."""
