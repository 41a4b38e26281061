"""Runs on a simulated accelerator: nothing mixes devices, and loops seldom wait for it."""
