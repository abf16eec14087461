"""Tiny models in Hugging Face's folders, made by transformers itself: what the trainer has to read."""

from pathlib import Path

import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CamembertConfig,
    CamembertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

VOCABULARY = 120
FAMILIES = {
    "roberta": (RobertaConfig, RobertaForMaskedLM),
    "camembert": (CamembertConfig, CamembertForMaskedLM),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaForMaskedLM),
    "bert": (BertConfig, BertForMaskedLM),
}


def family_model(
    family: str, tokens: int = 32, seed: int = 0, pad: int | None = None, **overrides: object
) -> torch.nn.Module:
    """A masked-language model of a family with positions for `tokens`; weights large enough to make outputs differ."""
    torch.manual_seed(seed)
    config_class, model_class = FAMILIES[family]
    if pad is None:
        pad = 0 if family == "bert" else 1
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "max_position_embeddings": tokens if family == "bert" else tokens + pad + 1,
        "pad_token_id": pad,
        "type_vocab_size": 2 if family == "bert" else 1,
        "layer_norm_eps": 1e-12 if family == "bert" else 1e-5,
        "initializer_range": 0.2,
        "tie_word_embeddings": True,  # which CamemBERT's configuration leaves open before transformers 5.4
    }
    model = model_class(config_class(**(sizes | overrides)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        # Distinct values in the rows that are not positions, to see that conversion keeps them.
        table = model.base_model.embeddings.position_embeddings.weight
        if family != "bert":
            table[: pad + 1] = torch.linspace(0.25, -0.5, pad + 1)[:, None]
    return model.eval()


def roberta_folder(folder: Path, tokens: int = 32, seed: int = 0, **overrides: object) -> Path:
    """A RoBERTa with `tokens` positions, saved by transformers."""
    family_model("roberta", tokens, seed, **overrides).save_pretrained(folder)
    return folder


def padded_batch(
    rows: int, tokens: int, seed: int = 0, pad: int = 1, vocabulary: int = VOCABULARY
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (rows, tokens) and their attention mask; the second row ends in padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(max(4, pad + 1), vocabulary - 1, (rows, tokens), generator=generator)
    if pad:
        ids[:, 0] = 0
    if rows > 1:
        ids[1, -max(1, tokens // 4) :] = pad
    return ids, (ids != pad).long()


def wordpiece_tokenizer(folder: Path) -> None:
    """A BERT's tokenizer as its repositories hold it: vocab.txt, tokenizer.json and a config that names no class."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "long", "document", "##s", "read", "##ing"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(words[:5])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')


def unigram_tokenizer(folder: Path) -> None:
    """A sentencepiece tokenizer as CamemBERT's and XLM-RoBERTa's repositories hold it, less the model it came from."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁long", "▁document", "s", "▁", "r", "e", "a", "d", "<mask>"]
    tokenizer = tokenizers.Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], 3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentencepiece.bpe.model").write_bytes(b"what tokenizer.json was made from")
