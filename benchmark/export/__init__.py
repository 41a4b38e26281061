"""What is taken out of a run: its table in LaTeX, its references, a model card, and a verdict on
thresholds."""
