"""Log files: found by name, glob or directory, decompressed, and decoded into lines."""

import bz2
import codecs
import gzip
import io
import itertools
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

_PROGRESS_STEP_BYTES = 1 << 16
_HEAD_BYTES = 1024
_GLOB_SIGNS = "*?["
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
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


class Line(NamedTuple):
    """A line of a file, without its end.

    Attributes:
        number: From 1 on.
        text: The line.
        is_whole: False for a last line that does not end with a line feed.
        size: Bytes read for it.
    """

    number: int
    text: str
    is_whole: bool = True
    size: int = 0


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
            stream, compression = _decompressed(raw)
            content = stream.read(_HEAD_BYTES)
            end = content.rfind(b"\n") + 1
            if not end:
                content += stream.readline()
                end = len(content)
        except (OSError, *_DAMAGED) as error:
            raise _unreadable(path, error) from error
    return Head(content[:end], modified, is_growing=compression is None)


def read_lines(
    path: Path, encoding: str, errors: str, on_bytes: Callable[[int], None] | None = None
) -> Iterator[Line]:
    """Read the lines of a file, holding one of them.

    Lines end at LF or CRLF. A byte order mark comes before ``encoding``.

    Args:
        path: The file; ``-`` is standard input.
        encoding: Encoding of its text.
        errors: Error handler of the encoding.
        on_bytes: Called with the number of bytes of the file, as it lies on disk, that were read since its
            last call: every 64 KiB and at the end.

    Raises:
        UnicodeDecodeError: A byte is not in the encoding; its line follows those that were yielded.
        LogFileError: The file cannot be read.
    """
    with ExitStack() as stack:
        try:
            raw = sys.stdin.buffer if path == STANDARD_INPUT else stack.enter_context(path.open("rb"))
            stream, _ = _decompressed(raw)
            lines = decoded(stream, encoding, errors)
            yield from lines if on_bytes is None else _counted(lines, raw, on_bytes)
        except UnicodeDecodeError:
            raise
        except (OSError, *_DAMAGED) as error:
            raise _unreadable(path, error) from error


def _counted(lines: Iterator[Line], raw: BinaryIO, on_bytes: Callable[[int], None]) -> Iterator[Line]:
    """Pass lines on, and tell how much of the file, as it lies on disk, was read for them."""
    can_tell = raw.seekable()
    read = told = 0
    for line in lines:
        yield line
        read += line.size
        if read >= _PROGRESS_STEP_BYTES:
            place = raw.tell() if can_tell else told + read
            on_bytes(place - told)
            read, told = 0, place
    place = raw.tell() if can_tell else told + read
    if place > told:
        on_bytes(place - told)


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


def _decompressed(raw: BinaryIO) -> tuple[BinaryIO, str | None]:
    """Return a stream of the content of a file, and the program that has compressed it."""
    begin = raw.peek(8)[:8] if isinstance(raw, io.BufferedReader) else b""
    for magic, compression in _MAGIC.items():
        if begin.startswith(magic):
            match compression:
                case "gzip":
                    return cast("BinaryIO", gzip.open(raw)), compression
                case "bzip2":
                    return cast("BinaryIO", bz2.open(raw)), compression
                case "xz":
                    return cast("BinaryIO", lzma.open(raw)), compression
                case _:
                    import pyarrow as pa

                    return io.BufferedReader(pa.CompressedInputStream(raw, "zstd")), compression
    return raw, None


def decoded(stream: BinaryIO, encoding: str, errors: str) -> Iterator[Line]:
    """Yield the lines of a stream; a byte order mark outdoes ``encoding``."""
    first = stream.readline()
    for mark, marked in _MARKS:
        if first.startswith(mark):
            encoding = marked
            if marked == "utf-8":
                first = first[len(mark) :]
            break
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        yield from _wide(first, stream, encoding, errors)
        return
    for number, raw in enumerate(itertools.chain((first,) if first else (), stream), 1):
        if raw.endswith(b"\n"):
            text = raw.removesuffix(b"\n").removesuffix(b"\r").decode(encoding, errors)
            yield Line(number, text, True, len(raw))
        else:  # its last character may be cut
            text = codecs.getincrementaldecoder(encoding)(errors).decode(raw)
            yield Line(number, text, is_whole=False, size=len(raw))


def _wide(first: bytes, stream: BinaryIO, encoding: str, errors: str) -> Iterator[Line]:
    """Yield lines of an encoding that writes a line feed as several bytes."""
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    number, rest, raw = 0, "", first
    while True:
        rest += decoder.decode(raw)
        size = len(raw)
        *lines, rest = rest.split("\n")
        for text in lines:
            number += 1
            yield Line(number, text.removesuffix("\r"), size=size)
            size = 0
        if not raw:
            break
        raw = stream.read(_PROGRESS_STEP_BYTES)
    if rest:
        yield Line(number + 1, rest, is_whole=False)


def _unreadable(path: Path, error: Exception) -> LogFileError:
    if isinstance(error, _DAMAGED):
        return LogFileError(f"{path}: the compressed file is damaged or not complete ({error})")
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LogFileError(f"{path}: {what}")
