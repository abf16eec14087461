"""The benchmark: `python -m trainer.benchmark`, and what it measures with."""
