"""The model that the estimate is checked on: small, but with activations, logits and states that all weigh."""

from trainer.model.longformer import EncoderConfig

TOKENS = 1024


def encoder_config(layers: int, hidden_size: int = 256) -> EncoderConfig:
    return EncoderConfig(
        architecture="longformer",
        vocab_size=8000,
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden_size,
        max_position_embeddings=TOKENS + 2,
        attention_window=[64] * layers,
    )
