"""What a run is asked to do: its spec, and what the names in it stand for."""
