"""Whole runs, under several threats or with several seeds: their parts, tables and page."""
