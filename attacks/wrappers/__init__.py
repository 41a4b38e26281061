"""Attacks that run another attack: toward each class, on arms or stages, from another model."""
