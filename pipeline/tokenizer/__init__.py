"""RoBERTa-style byte-level BPE tokenizers: loading them, naming them by a fingerprint, encoding fast and exactly.

`tokenizer.py` holds the class and its loading, `engines.py` the libraries that encode and how one of them earns
its place, `ranks.py` the conditions under which merging by rank is merging by the tokenizer's list, `sample.py`
the texts that every engine is tried on.
"""

from pipeline.tokenizer.tokenizer import (
    BOS,
    EOS,
    MASK,
    PAD,
    SPECIAL_TOKENS,
    TOKENIZER_FILES,
    UNK,
    Tokenizer,
    load_tokenizer,
)

__all__ = [
    "BOS",
    "EOS",
    "MASK",
    "PAD",
    "SPECIAL_TOKENS",
    "TOKENIZER_FILES",
    "UNK",
    "Tokenizer",
    "load_tokenizer",
]
