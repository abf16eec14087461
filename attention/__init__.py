"""Windowed attention whose cost is linear in the length: one operator, several backends, one answer."""

from attention.windowed import backends, windowed_attention

__all__ = ["backends", "windowed_attention"]
