"""The only place that judges: a frozen copy of the model, its evaluation, its records."""
