"""Analyses of reports: what they say beside their own tables, and of one another."""
