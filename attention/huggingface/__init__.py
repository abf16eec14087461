"""The core inside transformers' models.

`accelerate` puts it under transformers' own Longformer and LED models, `restore` takes it out again. Nothing else in
`attention` needs transformers.
"""

from attention.huggingface.longformer import accelerate, restore

__all__ = ["accelerate", "restore"]
