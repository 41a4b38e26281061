"""Recipes: how a defense is built, and on which loss it is trained."""
