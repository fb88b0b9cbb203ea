"""Log files: found by name, glob or directory, decompressed, and decoded into lines."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

STANDARD_INPUT = Path("-")

_BLOCK_BYTES = 1 << 16
_HEAD_BYTES = 1024
_GLOB_SIGNS = "*?["
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class LogFileError(ValueError):
    """A log file that cannot be found or read; the message names it."""


class Block(NamedTuple):
    """Lines of a file that follow one another, without their ends.

    Attributes:
        number: Number of the first, from 1 on.
        texts: The lines.
        byte: Bytes before the first, decompressed; None in an encoding of which a line feed is several bytes.
        sizes: Bytes of each line with its end, or of all.
        is_whole: False if the last one is the last of the file, and does not end with a line feed.
    """

    number: int
    texts: list[str]
    byte: int | None
    sizes: list[int]
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a file.

    Attributes:
        content: Its first bytes, decompressed: whole lines of at most 1 KiB, or the first line.
        modified: When the file was last written; now for standard input.
        is_growing: False if no line can be added: a compressed file, or standard input.
    """

    content: bytes
    modified: datetime
    is_growing: bool


def find_files(paths: Sequence[Path]) -> list[Path]:
    """Return the files of some paths, each once; those of a glob or a directory sorted by name.

    Raises:
        LogFileError: A path is or names no file that can be read.
    """
    return list(dict.fromkeys(file for path in paths for file in _find(path)))


def read_head(path: Path) -> Head:
    """Read the beginning of a file.

    Raises:
        LogFileError: The file cannot be read.
    """
    if path == STANDARD_INPUT:
        return Head(b"", datetime.now(UTC), is_growing=False)
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(path.open("rb"))
            modified = datetime.fromtimestamp(os.fstat(raw.fileno()).st_mtime, UTC)
            stream, is_compressed = _decompressed(raw)
            content = stream.read(_HEAD_BYTES)
            end = content.rfind(b"\n") + 1
            if not end:
                content += stream.readline()
                end = len(content)
        except (OSError, *_DAMAGED) as error:
            raise _unreadable(path, error) from error
    return Head(content[:end], modified, is_growing=not is_compressed)


def read_blocks(
    path: Path,
    encoding: str,
    errors: str,
    on_bytes: Callable[[int], None] | None = None,
    *,
    number: int = 1,
    byte: int = 0,
) -> Iterator[Block]:
    """Read the lines of a file in blocks of 64 KiB.

    Lines end at LF or CRLF. A byte order mark comes before ``encoding``.

    Args:
        path: The file; ``-`` is standard input.
        encoding: Encoding of its text.
        errors: Error handler of the encoding.
        on_bytes: Called after each block with the number of bytes of the file, as it lies on disk, that were
            read since its last call.
        number: Number of the line to begin with.
        byte: Number of bytes before it, decompressed. Nothing is read if no line begins there.

    Raises:
        UnicodeDecodeError: A byte is not in the encoding; its line follows those that were yielded.
        LogFileError: The file cannot be read.
    """
    with ExitStack() as stack:
        try:
            raw = sys.stdin.buffer if path == STANDARD_INPUT else stack.enter_context(path.open("rb"))
            stream, _ = _decompressed(raw)
            blocks = decoded(stream, encoding, errors, number=number, byte=byte)
            yield from blocks if on_bytes is None else _counted(blocks, raw, on_bytes)
        except UnicodeDecodeError:
            raise
        except (OSError, *_DAMAGED) as error:
            raise _unreadable(path, error) from error


def _counted(blocks: Iterator[Block], raw: BinaryIO, on_bytes: Callable[[int], None]) -> Iterator[Block]:
    """Pass blocks on, and tell how much of the file, as it lies on disk, was read for them."""
    can_tell = raw.seekable()
    told = 0
    for block in blocks:
        yield block
        place = raw.tell() if can_tell else told + sum(block.sizes)
        if place > told:
            on_bytes(place - told)
        told = place


def _find(path: Path) -> list[Path]:
    try:
        if path == STANDARD_INPUT:
            return [path]
        if not path.exists() and any(sign in str(path) for sign in _GLOB_SIGNS):
            pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
            found = sorted(Path(path.anchor).glob(pattern))
            files = [file for file in found if file.is_file()]
            if not files:
                raise LogFileError(f"{path}: no file has such a name")
        elif stat.S_ISDIR(path.stat().st_mode):
            files = sorted(file for file in path.iterdir() if file.is_file() and file.name[0] != ".")
            if not files:
                raise LogFileError(f"{path}: the directory has no files")
        else:
            files = [path]
        for file in files:
            if not os.access(file, os.R_OK):
                raise LogFileError(f"{file}: may not be read")
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise error if isinstance(error, LogFileError) else LogFileError(f"{path}: {error}") from error
    return files


def _decompressed(raw: BinaryIO) -> tuple[BinaryIO, bool]:
    """Return a stream of the content of a file, and True if the file is compressed."""
    begin = raw.peek(8)[:8] if isinstance(raw, io.BufferedReader) else b""
    for magic, decompress in _FORMATS.items():
        if begin.startswith(magic):
            return io.BufferedReader(cast("io.RawIOBase", decompress(raw))), True
    return raw, False


def _from_zstd(raw: BinaryIO) -> object:
    import pyarrow as pa

    return pa.CompressedInputStream(raw, "zstd")


_FORMATS: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _from_zstd,
}


def decoded(
    stream: BinaryIO, encoding: str, errors: str, *, number: int = 1, byte: int = 0
) -> Iterator[Block]:
    """Yield the lines of a stream; a byte order mark outdoes ``encoding``.

    Args:
        stream: The stream, at its beginning.
        encoding: Encoding of its text.
        errors: Error handler of the encoding.
        number: Number of the line to begin with.
        byte: Number of bytes before it. Nothing is read if no line begins there.
    """
    first = stream.readline()
    encoding, begin = _after_mark(first, encoding)
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        yield from _wide(first, stream, encoding, errors)
        return
    if not byte:
        byte = begin
        lines = [first[begin:], *stream.readlines(_BLOCK_BYTES)] if len(first) > begin else []
    elif stream.seekable() and stream.seek(byte - 1) and stream.read(1) == b"\n":
        lines = stream.readlines(_BLOCK_BYTES)
    else:
        return
    while lines:
        texts: list[str] = []
        sizes = [*map(len, lines)]
        last = lines[-1]
        is_whole = last.endswith(b"\n")
        try:
            texts.extend(
                (line[:-2] if line[-2:] == b"\r\n" else line[:-1]).decode(encoding, errors)
                for line in (lines if is_whole else lines[:-1])
            )
            if not is_whole:  # its last character may be cut
                texts.append(codecs.getincrementaldecoder(encoding)(errors).decode(last))
        except UnicodeDecodeError:
            yield Block(number, texts, byte, sizes)
            raise
        yield Block(number, texts, byte, sizes, is_whole)
        number += len(lines)
        byte += sum(sizes)
        lines = stream.readlines(_BLOCK_BYTES) if is_whole else []  # else more would continue the last line


def _after_mark(first: bytes, encoding: str) -> tuple[str, int]:
    """Return the encoding of a file that begins so, and the number of bytes before its text."""
    for mark, marked in _MARKS:
        if first.startswith(mark):
            return marked, len(mark) if marked == "utf-8" else 0
    return encoding, 0


def _wide(first: bytes, stream: BinaryIO, encoding: str, errors: str) -> Iterator[Block]:
    """Yield lines of an encoding that writes a line feed as several bytes."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    number, rest, raw = 1, "", first
    while True:
        rest += decoder.decode(raw)
        *lines, rest = rest.split("\n")
        if lines:
            yield Block(number, [text.removesuffix("\r") for text in lines], None, [len(raw)])
            number += len(lines)
        if not raw:
            break
        raw = stream.read(_BLOCK_BYTES)
    if rest:
        yield Block(number, [rest], None, [], is_whole=False)


def _unreadable(path: Path, error: Exception) -> LogFileError:
    if isinstance(error, _DAMAGED):
        return LogFileError(f"{path}: the compressed file is damaged or not complete ({error})")
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LogFileError(f"{path}: {what}")
