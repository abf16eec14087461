"""Streams of bytes as the readers need them: decompressed, skipped, cut into lines; each in bounded memory."""

import bz2
import io
import lzma
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, cast

from isal import igzip

BUFFER = 1 << 20
_BLOCK = 1 << 16
_XZ_MEMORY = 128 << 20
"""What an .xz file may need: `xz -9` needs 65 MB; a hostile header can ask for 4 GB."""
_EXPANSION = 1000
_EXPANSION_FREE = 256_000_000


class Damaged(Exception):
    """A stream is torn, damaged or hostile. The message says how; the reader names the file."""


def decompressed(stream: BinaryIO, compression: str) -> BinaryIO:
    """The content of a stream that is compressed in the way that a file's ending names, "" for none.

    Reading raises Damaged where the compressed stream ends early, is followed by anything else than another
    one, or is a decompression bomb.
    """
    if not compression:
        return stream
    inner: IO[bytes] | io.RawIOBase
    if compression == ".gz":
        inner = cast(IO[bytes], igzip.IGzipFile(fileobj=stream, mode="rb"))
    else:
        inner = _Unpacked(stream, _DECOMPRESSORS[compression])
    return cast(BinaryIO, io.BufferedReader(_Measured(inner, stream), BUFFER))


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor
_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {".bz2": bz2.BZ2Decompressor, ".xz": _xz}


class _Unpacked(io.RawIOBase):
    """The streams of a .bz2 or .xz file, one after the other. Python's own readers take what follows a stream
    and does not begin another for rubbish and end there, silently: in a dump of many streams a flipped bit
    would cost all that comes after it. And theirs has no bound on the memory that an .xz header asks for."""

    def __init__(self, stream: BinaryIO, new: Callable[[], _Decompressor]) -> None:
        self._stream = stream
        self._new = new
        self._decompressor = new()
        self._started = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        while True:
            packed = self._next_block()
            if packed is None:
                return 0
            try:
                content = self._decompressor.decompress(packed, len(buffer))
            except (OSError, lzma.LZMAError) as error:
                raise Damaged(str(error)) from error
            if content:
                buffer[: len(content)] = content
                return len(content)

    def _next_block(self) -> bytes | None:
        """What to decompress next; None at the end of the last stream."""
        if self._decompressor.eof:
            # Streams may be followed by zeros, up to a multiple of four bytes.
            packed = self._decompressor.unused_data.lstrip(b"\0")
            while not packed:
                block = self._stream.read(_BLOCK)
                if not block:
                    return None
                packed = block.lstrip(b"\0")
            self._decompressor = self._new()
            return packed
        if not self._decompressor.needs_input:
            return b""
        packed = self._stream.read(_BLOCK)
        if not packed:
            raise Damaged("the compressed stream ended early")
        return packed


class _Measured(io.RawIOBase):
    """Ends with an error what grows out of all proportion. Text packs to a tenth or a fiftieth of its size."""

    def __init__(self, unpacked: IO[bytes] | io.RawIOBase, packed: BinaryIO) -> None:
        self._unpacked = unpacked
        self._packed = packed
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        count = self._unpacked.readinto(buffer)  # type: ignore[union-attr, unused-ignore]
        self._size += count
        refuse_bomb(self._size, self._packed.tell)
        return count


def refuse_bomb(size: int, packed_size: Callable[[], int]) -> None:
    """Damaged where `size` bytes came out of far too few."""
    if size > _EXPANSION_FREE and size > _EXPANSION * (packed := packed_size()):
        raise Damaged(
            f"{packed:,} bytes expanded to more than {size:,}: a decompression bomb; expected at most "
            f"{_EXPANSION:,} times as many"
        )


def skip(stream: IO[bytes], count: int) -> None:
    """Passes over `count` bytes without looking at them."""
    buffer = memoryview(bytearray(min(count, BUFFER)))
    left = count
    while left:
        got = stream.readinto(buffer[: min(left, BUFFER)])  # type: ignore[attr-defined]
        if not got:
            raise Damaged(f"ended after {count - left:,} bytes; {count:,} were read before")
        left -= got


class Lines:
    """The lines of a stream, with their ends. Of one that is too large, only the first `maximum` + 1 bytes are
    held and given."""

    def __init__(self, stream: IO[bytes], maximum: int, offset: int, number: int) -> None:
        self._stream = stream
        self.maximum = maximum
        self.offset = offset
        """How many bytes of the stream lie before the next line."""
        self.number = number
        """The number of the last line given, from 1."""

    def __iter__(self) -> Iterator[bytes]:
        readline, limit = self._stream.readline, self.maximum + 1
        while line := readline(limit):
            size = len(line)
            if size == limit:
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = readline(BUFFER)
                    size += len(rest)
            self.offset += size
            self.number += 1
            yield line

    def whole(self) -> bytes:
        """All that is left, as one text; of too large a one the first `maximum` + 1 bytes."""
        return self._stream.read(self.maximum + 1)
