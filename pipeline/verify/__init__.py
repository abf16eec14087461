"""Checks a sealed corpus again, completely: `python -m pipeline.verify DIR_OR_URI`."""
