"""Studies: what a finished run, or a trained model, says beyond its table."""
