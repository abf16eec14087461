"""The members of .tar and .zip archives, one after the other, as streams. Nothing is ever written under a
member's name, so one that points outside is read like any other."""

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, cast

from pipeline.documents import readable_name
from pipeline.sources.streams import BUFFER, Damaged, refuse_bomb

_HEADER_BYTES = 1 << 20
_DIRECTORY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive that is no folder."""

    number: int
    """How many members lie before it, whatever they are."""
    name: str
    """Its name as a part of an id."""
    content: BinaryIO | None
    """None where it is no regular file but a link, a device or the like."""


def tar_members(stream: BinaryIO, first: int) -> Iterator[Member]:
    """The members of a tar archive from number `first` on. Damaged where it is not whole."""
    with tarfile.open(fileobj=stream, mode="r|", bufsize=BUFFER, tarinfo=_Header) as archive:
        number = -1
        while (header := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps them all
            number += 1
            if number < first or header.isdir():
                continue
            content = archive.extractfile(header) if header.isreg() and not header.issparse() else None
            yield Member(number, _clean(header.name), _buffered(content.raw) if content else None)  # type: ignore[attr-defined]
        # To the end, so that the checksum of a compression is looked at.
        rest = cast(Any, archive.fileobj)
        while block := rest.read(BUFFER):
            if block.count(0) != len(block):
                raise Damaged("something follows the end of the archive; expected one archive in a file")


class _Header(tarfile.TarInfo):
    """Raises for what tarfile takes for the end of an archive: a header that is damaged, or missing."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        if not buf:
            raise Damaged("truncated: the archive does not end with an empty block")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.count(0) == len(buf):  # the end
                raise
            raise Damaged(f"a member's header is damaged: {error}") from error

    def _proc_member(self, archive: tarfile.TarFile) -> "_Header":
        # A name, or attributes: tarfile holds them in memory, of whatever size.
        if not self.isreg() and self.type in _EXTENSIONS and self.size > _HEADER_BYTES:
            raise Damaged(f"a member's header of {self.size:,} bytes; expected at most {_HEADER_BYTES:,}")
        return cast(Any, super())._proc_member(archive)

    def _proc_gnusparse_10(self, *arguments: object) -> None:
        raise Damaged("a sparse member with a map of its own; expected plain files")


_EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def zip_members(stream: BinaryIO, first: int) -> Iterator[Member]:
    """The members of a zip archive from number `first` on, which must be able to seek. Damaged where one is a
    decompression bomb."""
    with zipfile.ZipFile(cast(IO[bytes], _BoundedReads(stream))) as archive:
        for number, header in enumerate(archive.infolist()):
            if number < first or header.is_dir():
                continue
            name = _clean(header.filename)
            kind = stat.S_IFMT(header.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                yield Member(number, name, None)
                continue
            refuse_bomb(header.file_size, lambda header=header: header.compress_size)  # type: ignore[misc]
            with archive.open(header) as content:
                yield Member(number, name, _buffered(content))


class _BoundedReads:
    """A stream that refuses to read as much at once as zipfile does of a directory of millions of members,
    which it would then keep."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY_BYTES:
            raise Damaged(
                f"a directory of {size:,} bytes; expected at most {_DIRECTORY_BYTES:,}, about 200,000 members: "
                "make it several archives, or a .tar"
            )
        return self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _buffered(content: Any) -> BinaryIO:
    """As large a buffer as the readers of lines want: tarfile's is small, and a ZipExtFile's readline slow."""
    return cast(BinaryIO, io.BufferedReader(content, BUFFER))


def _clean(member: str) -> str:
    return readable_name("/".join(part for part in member.split("/") if part not in ("", ".", "..")))
