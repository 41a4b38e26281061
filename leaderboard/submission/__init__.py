"""Submissions: rows with their evidence, made, opened and replayed."""
