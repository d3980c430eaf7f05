"""Pretext tasks: one module per method, and the module's name is the method's name."""
