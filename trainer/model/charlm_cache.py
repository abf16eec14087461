"""A character model one character at a time, in the memory of its windows.

Dilated windows split a text by position mod dilation into strips, in each of which a character sees itself and the
`lookback` characters before it. So a ring of lookback + 1 places a strip holds just what the strip's newest character
sees, whatever the order: that one is written over the oldest, and a plain product with the ring, no mask, is its
attention. Keys are kept as turned by their own position, since a score depends on the distance alone.
"""

from __future__ import annotations

from copy import copy
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.charlm import CharacterConfig, CharacterLayer, CharacterModel, rotary_angles

CHUNK = 512
"""Characters of a prompt that are read at once: enough for full matrix products, few beside the large windows."""


class Ring:
    """Keys and values of the heads of a layer that share a dilation: 2 × (B, H, dilation, lookback + 1, D) float32."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @classmethod
    def empty(
        cls, batch: int, heads: int, dilation: int, lookback: int, dimensions: int, device: torch.device
    ) -> Ring:
        shape = (batch, heads, dilation, lookback + 1, dimensions)
        return cls(torch.zeros(shape, device=device), torch.zeros(shape, device=device))

    def fork(self) -> Ring:
        return Ring(self.keys.clone(), self.values.clone())

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def attend(self, query: Tensor, key: Tensor, value: Tensor, position: int) -> Tensor:
        """What characters at `position` and on see, (B, H, n, D) like the arguments; the ring then holds them."""
        dilation = self.keys.shape[2]
        attended = torch.empty_like(query)
        for first in range(min(dilation, query.shape[2])):
            row, strip = divmod(position + first, dilation)
            parts = (x[:, :, first::dilation] for x in (query, key, value))
            attended[:, :, first::dilation] = self._attend_in_strip(strip, row, *parts)
        return attended

    def _attend_in_strip(self, strip: int, row: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `attend`, for characters that are row, row + 1, … of one strip."""
        keys, values = self.keys[:, :, strip], self.values[:, :, strip]
        places, count = keys.shape[2], query.shape[2]
        held = min(row, places)
        if count == 1:
            keys[:, :, row % places] = key[:, :, 0]
            values[:, :, row % places] = value[:, :, 0]
            held = min(row + 1, places)
            return F.scaled_dot_product_attention(query, keys[:, :, :held], values[:, :, :held])
        # Several: the first still sees what the last is written over, so the ring stays as it is until they have seen.
        rows = torch.arange(row, row + count, device=query.device)
        place = torch.arange(held, device=query.device)
        rows_seen = torch.cat([row - 1 - (row - 1 - place) % places, rows])
        distance = rows[:, None] - rows_seen
        attended = F.scaled_dot_product_attention(
            query,
            torch.cat([keys[:, :, :held], key], dim=2),
            torch.cat([values[:, :, :held], value], dim=2),
            attn_mask=(distance >= 0) & (distance < places),
        )
        kept = rows[-places:] % places
        keys[:, :, kept] = key[:, :, -places:]
        values[:, :, kept] = value[:, :, -places:]
        return attended


def cache_bytes(config: CharacterConfig, lookback: tuple[int, ...]) -> int:
    """What a cache of one text takes, without making it."""
    dimensions = config.hidden_size // config.num_attention_heads
    return sum(
        2 * 4 * dimensions * step * (most + 1)
        for layer, most in enumerate(lookback)
        for step in config.steps_of_heads(layer)
    )


class WindowCache:
    """What a character model has to remember of the texts it continues: the same bytes after any number of characters.

    `position` counts the characters that have come. The model is in eval mode, and stays on its device.
    """

    def __init__(
        self, model: CharacterModel, lookback: tuple[int, ...], batch: int = 1, chunk: int = CHUNK
    ) -> None:
        """Nothing read yet; `lookback` an entry a layer, as for `CharacterModel.forward`; `batch` texts side by side,
        of which `chunk` characters are read at once."""
        assert len(lookback) == model.config.num_hidden_layers
        assert not model.training
        self.model = model
        self.chunk = chunk
        self.position = 0
        self.dimensions = model.config.hidden_size // model.config.num_attention_heads
        self.reach = model.config.reach(lookback)
        device = model.embeddings.weight.device
        self.layers: list[list[Ring]] = []
        for index, most in enumerate(lookback):
            heads = groupby(model.config.steps_of_heads(index))
            self.layers.append(
                [Ring.empty(batch, len([*same]), step, most, self.dimensions, device) for step, same in heads]
            )

    def fork(self) -> WindowCache:
        """Another that goes on from here by itself: several texts from one prompt, which is read once."""
        other = copy(self)
        other.layers = [[ring.fork() for ring in rings] for rings in self.layers]
        return other

    @property
    def nbytes(self) -> int:
        """The memory of keys and values, on the model's device."""
        return sum(ring.nbytes for rings in self.layers for ring in rings)

    @torch.inference_mode()
    def append(self, characters: Tensor) -> Tensor:
        """Read characters (B, n), n ≥ 1, of any integer type; logits (B, vocab_size) of what follows the last.

        One at a time or many: memory beside the cache is that of `chunk` characters. Of more than the model can look
        back, all layers together, only the last are read: no logit from here on depends on the others.
        """
        assert characters.shape[1] > 0
        beyond = max(0, characters.shape[1] - (self.reach + 1))
        # What the rings hold is now taken for the characters left out: those that follow read it, but none that the
        # last one, or one after it, depends on.
        self.position += beyond
        for chunk in characters[:, beyond:].split(self.chunk, dim=1):
            hidden = self._read(chunk)
        return self.model.logits(self.model.norm(hidden[:, -1]))

    def _read(self, characters: Tensor) -> Tensor:
        """The stream (B, n, hidden_size) above the last layer."""
        device = self.model.embeddings.weight.device
        positions = torch.arange(self.position, self.position + characters.shape[1], device=device)
        angles = rotary_angles(positions, self.dimensions)
        hidden = self.model.embeddings(characters.to(device, torch.int64))
        for layer, rings in zip(self.model.layers, self.layers, strict=True):
            assert isinstance(layer, CharacterLayer)
            projections = layer.attention.projections(layer.attention_norm(hidden), angles)
            heads = [ring.keys.shape[1] for ring in rings]
            by_ring = zip(rings, *(x.split(heads, dim=1) for x in projections), strict=True)
            attended = torch.cat(
                [ring.attend(query, key, value, self.position) for ring, query, key, value in by_ring], dim=1
            )
            hidden = hidden + layer.attention.output(attended.transpose(1, 2).flatten(2).to(hidden.dtype))
            hidden = layer.feed_forward(hidden)
        self.position += characters.shape[1]
        return hidden
