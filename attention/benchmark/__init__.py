"""The benchmark: `python -m attention.benchmark`, and what it measures with."""
