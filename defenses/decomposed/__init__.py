"""Classifiers put together from networks for simpler tasks, trained side by side."""
