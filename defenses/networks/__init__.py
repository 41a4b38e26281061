"""Ordinary networks: named architectures, and networks written as text."""
