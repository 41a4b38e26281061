"""The training loop, its checkpoints, and trained models on disk."""
