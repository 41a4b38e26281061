"""Records of a run made again, without attacking, from its models and examples."""
