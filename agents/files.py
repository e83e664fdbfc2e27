"""Reads texts, and replaces files whole: a reader, or a crash, sees the old content or the new."""

import errno
import gzip
import json
import os
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reflux.agents.errors import UsageError


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield a temporary file beside `path` that replaces it when the block ends without an error.

    A device or a pipe cannot be replaced, so the block writes to `path` itself. A symbolic link
    stays; its target is replaced.

    Raises:
        IsADirectoryError: `path` is a folder.
        UsageError: its own folder does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with _telling(path):
            yield path
        return
    path = Path(os.path.realpath(path))
    if not path.parent.exists():
        raise UsageError(f"there is no folder {path.parent}: make it, or choose another")
    with _beside(path) as temporary:
        yield temporary
        temporary.replace(path)


@contextmanager
def _telling(path: Path, *others: Path) -> Generator[None]:
    """An `OSError` in the block names `path` where it names no file, or one of `others`."""
    try:
        yield
    except OSError as error:  # A full disk is told by the file that did not fit.
        if error.filename is None or Path(os.fsdecode(error.filename)) in others:
            error.filename = str(path)
        raise


@contextmanager
def _beside(path: Path) -> Generator[Path]:
    """A temporary file that is gone after the block; an error tells of `path` itself."""
    # The process id keeps two processes that write the same file apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _telling(path, temporary):
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file's text and flush it to the disk; see `replacing` for devices and links."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if temporary != path:
            os.fsync(file.fileno())


def write_json(path: Path, body: Any) -> None:
    """Replace a file by a JSON document; see `write_whole`."""
    write_whole(path, json.dumps(body, indent=2) + "\n")


def write_once(path: Path, text: str) -> str:
    """Create a file unless it exists; the text that it then holds, whichever process wrote it."""
    try:
        with _beside(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
            path.hardlink_to(temporary)
    except FileExistsError:
        return path.read_text(encoding="utf-8")
    return text


def flush(path: Path) -> None:
    """Flush a file that another library wrote to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, plain or gzipped.

    Raises:
        UsageError: it is neither; the message names the line.
    """
    body = path.read_bytes()
    if path.suffix.lower() == ".gz" or body.startswith(b"\x1f\x8b"):
        try:
            body = gzip.decompress(body)
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{path} is no whole gzip file: {error}; write it again") from error
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{path}, line {line}: not UTF-8 (byte {error.start}); save the file as UTF-8"
        ) from error
