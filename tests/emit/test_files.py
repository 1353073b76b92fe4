"""Files appear whole or not at all, and never over somebody else's."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxapprox
from fxapprox.emit import files, weights
from fxapprox.emit import write as writing
from fxapprox.errors import EmitError


@pytest.fixture(scope="module")
def fast() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return fxapprox.rewrite(model, (torch.randn(4, 8),), policy="topk", keep=0.5)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_both_files_and_nothing_else_appear(fast: nn.Module, tmp_path: Path) -> None:
    written = fxapprox.emit(fast, tmp_path / "net.py")
    assert written == (tmp_path / "net.py", tmp_path / "net.safetensors")
    assert names(tmp_path) == ["net.py", "net.safetensors"]
    assert fxapprox.emit(fast, str(tmp_path / "net.py")) == written  # its own files may be replaced
    assert names(tmp_path) == ["net.py", "net.safetensors"]


@pytest.mark.parametrize("foreign", ["net.py", "net.safetensors"])
def test_somebody_elses_file_is_left_alone_without_force(
    fast: nn.Module, tmp_path: Path, foreign: str
) -> None:
    (tmp_path / foreign).write_text("mine")
    with pytest.raises(EmitError, match=f"{foreign} exists and was not written by fxapprox"):
        fxapprox.emit(fast, tmp_path / "net.py")
    assert (tmp_path / foreign).read_text() == "mine"
    assert names(tmp_path) == [foreign]
    fxapprox.emit(fast, tmp_path / "net.py", force=True)
    assert names(tmp_path) == ["net.py", "net.safetensors"]


@pytest.mark.parametrize("name", ["net.txt", "my-net.py", "3d.py", "net"])
def test_names_that_cannot_be_imported_are_refused(fast: nn.Module, tmp_path: Path, name: str) -> None:
    with pytest.raises(EmitError, match="not the name of a module"):
        fxapprox.emit(fast, tmp_path / name)
    assert names(tmp_path) == []


def test_a_missing_folder_is_refused(fast: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(EmitError, match="there is no folder"):
        fxapprox.emit(fast, tmp_path / "no" / "net.py")


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
@pytest.mark.parametrize("bytes_written", [100, 10_000])  # in the source; in the weights
def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path: Path, bytes_written: int) -> None:
    import resource

    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    fast = fxapprox.rewrite(model, (torch.randn(4, 100),), policy="topk")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_written, before[1]))
    try:
        with pytest.raises(EmitError, match=r"net.py cannot be written: .*File too large"):
            fxapprox.emit(fast, tmp_path / "net.py")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(
    ("place", "name", "failure"),
    [
        (weights, "save_file", full_disk),
        (files, "mkdtemp", full_disk),
        (os, "replace", full_disk),
        (os, "replace", KeyboardInterrupt),
        (writing, "_try_out", KeyboardInterrupt),
    ],
)
def test_a_failure_in_the_middle_leaves_what_was_there(
    fast: nn.Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    failure: Any,
    before: bool,
) -> None:
    if before:
        fxapprox.emit(fast, tmp_path / "net.py")
    left = {entry: (tmp_path / entry).read_bytes() for entry in names(tmp_path)}
    real, calls = os.replace, []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if name == "replace" and len(calls) != 2:  # the second of the two moves, not those that undo
            return real(*args, **kwargs)
        if isinstance(failure, type):
            raise failure
        return failure()

    place = files.tempfile if name == "mkdtemp" else place
    monkeypatch.setattr(place, name, fails)
    wanted = KeyboardInterrupt if failure is KeyboardInterrupt else EmitError
    with pytest.raises(wanted):
        fxapprox.emit(fast, tmp_path / "net.py")
    monkeypatch.undo()
    assert calls
    assert {entry: (tmp_path / entry).read_bytes() for entry in names(tmp_path)} == left


def test_a_closed_folder_is_refused_in_one_line(
    fast: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(files.tempfile, "mkdtemp", closed)
    with pytest.raises(EmitError, match=r"net.py cannot be written: Permission denied"):
        fxapprox.emit(fast, tmp_path / "net.py")


def test_only_rewritten_models_are_emitted(tmp_path: Path) -> None:
    with pytest.raises(fxapprox.FxApproxError, match=r"was not made by fxapprox\.rewrite"):
        fxapprox.emit(nn.Linear(2, 2), tmp_path / "net.py")


def test_emitting_leaves_the_random_state_alone(fast: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    fxapprox.emit(fast, tmp_path / "net.py")
    assert torch.equal(torch.rand(3), expected)
