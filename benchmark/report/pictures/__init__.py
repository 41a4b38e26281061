"""Pictures of what was measured: curves of robust accuracy, and adversarial examples."""
