"""Properties of networks as the verification competition has them (VNN-LIB), and verdicts."""
