"""stdout belongs to the result: whatever else is printed there goes to stderr."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def result_stream() -> Iterator[TextIO]:
    """The real stdout, for the result alone.

    Meanwhile stdout is stderr, down to the file descriptor where there is one: a user's file may print
    when it is imported, from C, from a child process, or from a thread that outlives the import."""
    standing = sys.stdout
    if not _is_descriptor_one(standing):
        sys.stdout = sys.stderr
        try:
            yield standing
        finally:
            sys.stdout = standing
        return
    standing.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "w", encoding=standing.encoding, errors=standing.errors, newline="") as result:
            sys.stdout = sys.stderr
            try:
                yield result
            finally:
                result.flush()
                os.dup2(kept, 1)
    finally:
        sys.stdout = standing


def _is_descriptor_one(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return False
