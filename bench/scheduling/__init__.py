"""Scheduling: sweeps on Ray. Only this package and the workers it starts import ray."""
