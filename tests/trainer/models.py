"""Tiny models in Hugging Face's folders, made by transformers itself: what the trainer has to read."""

from pathlib import Path

import torch
from transformers import RobertaConfig, RobertaForMaskedLM

VOCABULARY = 120


def roberta_folder(folder: Path, tokens: int = 32, seed: int = 0, **overrides: object) -> Path:
    """A RoBERTa with `tokens` positions, saved by transformers; weights large enough to make outputs differ."""
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "max_position_embeddings": tokens + 2,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.2,
    }
    model = RobertaForMaskedLM(RobertaConfig(**(sizes | overrides)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        # Distinct values in the rows that are not positions, to see that conversion keeps them.
        model.roberta.embeddings.position_embeddings.weight[:2] = torch.tensor([[0.25], [-0.5]])
    model.save_pretrained(folder)
    return folder


def padded_batch(rows: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows, tokens) and their attention mask; the second row ends in padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY - 1, (rows, tokens), generator=generator)
    ids[:, 0] = 0
    if rows > 1:
        ids[1, -max(1, tokens // 4) :] = 1
    return ids, (ids != 1).long()
