"""Attacks that search for a point themselves, one per file."""
