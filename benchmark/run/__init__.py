"""Runs: models are attacked, and what was measured is kept, resumed and replayed."""
