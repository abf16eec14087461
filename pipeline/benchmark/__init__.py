"""The benchmark: `python -m pipeline.benchmark`, and what it measures with."""
