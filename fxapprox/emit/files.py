"""Two files that appear together, whole, or not at all; and never over somebody else's."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import EmitError

MARKER = "# Written by fxapprox"
"""Begins the first line of every emitted file."""


def target_of(path: str | os.PathLike[str]) -> Path:
    """The source file to write. Raises EmitError for names that Python could not import."""
    target = Path(path)
    if target.suffix != ".py" or not target.stem.isidentifier():
        stem = "".join(c if c.isalnum() else "_" for c in target.name.removesuffix(".py")) or "model"
        raise EmitError(
            f"{target.name or target} is not the name of a module that can be imported",
            remedy=f"name it, say, {target.parent / (stem if not stem[0].isdigit() else '_' + stem)}.py",
        )
    if not target.parent.is_dir():
        raise EmitError(f"there is no folder {target.parent}", remedy="make it first")
    return target


def check_free(files: Sequence[Path], *, force: bool) -> None:
    """Raise EmitError where a file stands that fxapprox did not write, unless `force`."""
    for file in files:
        if file.is_dir():
            raise EmitError(f"{file} is a folder", remedy="choose another name")
        if file.exists() and not force and not _is_ours(file):
            raise EmitError(
                f"{file} exists and was not written by fxapprox",
                remedy="choose another name, or overwrite it with force",
            )


def _is_ours(file: Path) -> bool:
    try:
        if file.suffix == ".py":
            with file.open("rb") as stream:
                return stream.read(len(MARKER)) == MARKER.encode()
        with safe_open(str(file), framework="pt") as weights:
            return "fxapprox" in (weights.metadata() or {})
    except (OSError, SafetensorError):
        return False


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder beside the target, gone afterwards whatever happens. Raises EmitError if it cannot be made."""
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.stem}."))
    except OSError as failure:
        raise unwritable(target, failure) from failure
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, files: Sequence[Path]) -> None:
    """Move `folder / file.name` to each file: all of them, or none.

    What stood there is put back if one of the moves fails or is interrupted."""
    backups: list[tuple[Path, Path]] = []
    moved: list[Path] = []
    try:
        for file in files:
            if file.exists():
                backup = folder / f"{file.name}.before"
                os.link(file, backup)
                backups.append((backup, file))
        for file in files:
            moved.append(file)
            os.replace(folder / file.name, file)
    except BaseException:
        for backup, file in backups:
            os.replace(backup, file)
        for file in moved:
            if file not in [restored for _, restored in backups]:
                file.unlink(missing_ok=True)
        raise


def unwritable(target: Path, failure: OSError | SafetensorError) -> EmitError:
    said = failure.strerror if isinstance(failure, OSError) else None
    return EmitError(
        f"{target} cannot be written: {said or failure}",
        remedy="nothing was left behind; see to the folder",
    )
