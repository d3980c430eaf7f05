"""bench: which self-supervised pretext task works on fine-grained images."""

__version__ = "0.1.0"
