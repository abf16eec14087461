"""A file elsewhere as a stream that can seek."""

import io
import os
from abc import abstractmethod


class RangedFile(io.RawIOBase):
    """Reads a file of a known size by asking for the bytes at a place."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    @abstractmethod
    def read_at(self, position: int, count: int) -> bytes:
        """At least one byte and at most `count`, which lie within the file."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[
            whence
        ] + offset
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        count = min(len(buffer), self._size - self._position)
        if count <= 0:
            return 0
        content = self.read_at(self._position, count)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
