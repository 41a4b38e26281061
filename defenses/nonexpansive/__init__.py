"""Networks that never expand an L2 distance, and the classifiers made of them."""
