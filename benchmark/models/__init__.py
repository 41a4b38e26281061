"""From the name of a defense to a model that is ready to be attacked."""
