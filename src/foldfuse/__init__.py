"""Foldfuse: from a labelled folder and a deadline to a fused detection submission."""

__version__ = "0.1.0"
