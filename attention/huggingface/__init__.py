"""The core inside transformers' models.

- `accelerate` puts it under transformers' own Longformer and LED models, `restore` takes it out again.
- Importing this registers it as `attn_implementation="longspan"`, for any encoder that asks transformers' attention
  interface: BERT, RoBERTa, XLM-RoBERTa, DistilBERT, ELECTRA and others.
- `lengthen` tiles learned positions, so that such an encoder takes longer texts.

Nothing else in `attention` needs transformers.
"""

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(
        f"found transformers {transformers.__version__}; attention.huggingface expects 5.0 or later"
    )

from attention.huggingface.implementation import register
from attention.huggingface.longformer import accelerate, restore
from attention.huggingface.positions import lengthen

__all__ = ["accelerate", "lengthen", "register", "restore"]

register()
