"""Studies that are specs: a run at each point of a grid."""
