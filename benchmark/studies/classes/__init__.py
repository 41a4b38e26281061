"""Robustness against the number of classes that a model is trained on."""
