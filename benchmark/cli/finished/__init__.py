"""Commands on runs that are finished: what broke what, how rows compare, and what is taken out."""
