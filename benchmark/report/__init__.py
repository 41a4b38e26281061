"""From records to accuracies, flags, tables and pictures."""
