"""Random numbers of a site's own: seeded by `torch.manual_seed`, apart from the global generator.

Every draw is a fresh generator whose seed is a hash of (seed of the run, site, draw number, rank,
product): nothing is consumed from, or written to, torch's own generator, a backward pass needs no
stored state, and two runs with the same seed see the same draws whatever else they do.

The draw number counts a site's forward passes since the last `torch.manual_seed`. A forward that is a
recomputation (gradient checkpointing) must find the number of the forward it repeats; `SiteStream`
keeps tickets for that while a checkpoint is open.
"""

from __future__ import annotations

import hashlib
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction, _CheckpointFrame

from ..errors import FxApproxError
from .clock import Clock

TICKETS = 1024
"""Forward passes under an open checkpoint that a site remembers, about 200 bytes each."""


class _Generator:
    """The stream of one product of one draw. Nothing is computed before a generator is asked for, so
    that a policy without chance costs nothing and compiles."""

    def __init__(self, key: tuple[object, ...]) -> None:
        self._key = key
        self._generator: torch.Generator | None = None

    def generator(self) -> torch.Generator:
        """A generator on the CPU, so that a seed draws the same on every device; always the same one."""
        if self._generator is None:
            digest = hashlib.blake2b(repr(self._key).encode(), digest_size=8).digest()
            # one bit less than 8 bytes: what fits a signed 64-bit integer is a seed everywhere
            self._generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        return self._generator


@dataclass(frozen=True)
class Draw:
    """One forward pass of a site: everything random in it and in its backward pass follows from this.
    `again` where it repeats an earlier one, to be computed once more for a backward pass."""

    site: str
    seed: int
    number: int
    rank: int = 0
    step: int = 0  # of training, for what follows a schedule
    again: bool = field(default=False, compare=False)

    def stream(self, product: str) -> _Generator:
        """Random numbers for one product; asked again, it starts over (so a repeated backward repeats)."""
        return _Generator((self.seed, self.site, self.number, self.rank, product))


@dataclass
class _Ticket:
    draw: Draw
    fingerprint: bytes
    segments: tuple[weakref.ref[Any], ...]
    used_in: int | None = None  # the backward pass that repeated it last

    @property
    def live(self) -> bool:
        """Whether the forward can still be repeated: torch drops its checkpoint when nothing needs it."""
        return not self.segments or any(segment() is not None for segment in self.segments)


@dataclass(frozen=True)
class _Situation:
    """Where a forward pass stands: in a part of the model that will be recomputed, or is being so.

    `segments` are torch's own objects for the calls of checkpoints around it, innermost first; none
    where another library makes the checkpoint."""

    opens: bool
    repeats: bool
    segments: tuple[Any, ...] = ()

    @property
    def trains(self) -> bool:
        """Whether gradients are wanted: a checkpoint with use_reentrant=True runs without them at first."""
        return torch.is_grad_enabled() or bool(self.segments)


_PLAIN = _Situation(opens=False, repeats=False)


@dataclass
class SiteStream:
    """The draws of one site. A plain attribute of its module: copied and pickled with it."""

    site: str
    number: int = 0  # draws made since the last torch.manual_seed
    _seed: int | None = None  # the seed that they are drawn from
    _token: tuple[object, ...] | None = None
    _tickets: deque[_Ticket] = field(default_factory=lambda: deque(maxlen=TICKETS))
    _seen: int | None = None  # torch's seed at the last draw: another one where a run was resumed

    def draw(self, left: Tensor, clock: Clock | None = None) -> Draw:
        """The draw of the forward pass that now begins on `left`: the next one, or the one repeated.

        It is at the step that the clock shows; a next one counts, where the clock counts forward passes."""
        situation = _situation()
        if situation is _PLAIN:
            return self._next(clock)
        fingerprint = _fingerprint(left)
        self._tickets = deque((t for t in self._tickets if t.live), maxlen=TICKETS)
        # with no ticket at all nothing was checkpointed: a first forward that happens inside a backward
        repeats = situation.repeats and len(self._tickets) > 0
        draw = (
            self._recall(fingerprint, situation.segments)
            if repeats
            else self._next(clock, counts=situation.trains)
        )
        if situation.opens:
            self._tickets.append(_Ticket(draw, fingerprint, tuple(map(weakref.ref, situation.segments))))
        return draw

    def _next(self, clock: Clock | None, counts: bool = True) -> Draw:
        seen, token = torch.initial_seed(), _seed_token()
        self._seed, self.number = self._at(seen, token)
        self._seen, self._token = seen, token
        draw = Draw(self.site, self._seed, self.number, _rank(), clock.now if clock else 0)
        self.number += 1
        if clock is not None and counts and not clock.driven:
            clock.advance()
        return draw

    def _recall(self, fingerprint: bytes, segments: tuple[object, ...]) -> Draw:
        """The draw of the forward that this one repeats.

        Among equal inputs: one segment is repeated from front to back, several from the last to the
        first, and a ticket serves once in a backward pass, and again in the next (retain_graph)."""
        matches = [ticket for ticket in self._tickets if ticket.fingerprint == fingerprint]
        if not matches:
            raise FxApproxError(
                "a recomputed forward pass got an input that none of the remembered forward passes had: its "
                "random draw cannot be repeated, and gradients would be wrong",
                where=f"site {self.site}",
                remedy="gradient checkpointing must recompute the same input: keep preserve_rng_state=True, "
                f"and at most {TICKETS} passes of a layer between its forward and its backward",
            )
        inside = (
            [ticket for ticket in matches if any(held() is segment for held in ticket.segments)]
            for segment in segments
        )
        queue = next(filter(None, inside), matches[::-1])
        task = _graph_task()
        ticket = next((ticket for ticket in queue if ticket.used_in != task), queue[0])
        ticket.used_in = task
        return replace(ticket.draw, again=True)

    def _reseeded(self, seen: int, token: tuple[object, ...]) -> bool:
        """Whether torch.manual_seed was called since the last draw, given torch's seed and the token now.

        torch has no event for it, and the same seed may be set again. But manual_seed queues a new
        call back for each kind of accelerator that this process has not initialised, and hardly any
        process initialises both of those we look at."""
        if self._token is None:
            return False
        # the run's own seed comes back with torch.set_rng_state
        known = seen in (self._seen, self._seed)
        return not known or self._token[0] is not token[0] or self._token[1] is not token[1]

    def _at(self, seen: int, token: tuple[object, ...]) -> tuple[int, int]:
        """Seed and number of the next draw."""
        if self._seed is None or self._reseeded(seen, token):
            return seen, 0
        return self._seed, self.number

    def state(self) -> dict[str, int]:
        """What the draws to come follow from."""
        seed, number = self._at(torch.initial_seed(), _seed_token())
        return {"seed": seed, "number": number}

    def load_state(self, state: Mapping[str, int]) -> None:
        """Go on with the draws of another run from where it stood.

        Torch's seed is that run's already, will be once its generator's state is restored, or stays
        another: all three go on. Only a torch.manual_seed from now on starts the draws over."""
        self.number, self._seed = state["number"], state["seed"]
        self._seen, self._token = torch.initial_seed(), _seed_token()
        self._tickets.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "number": 0 if self._reseeded(torch.initial_seed(), _seed_token()) else self.number,
            "seed": self._seed,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # what was seeded before the copy was made counts as seen, so a resumed run goes on counting
        token, seed = None if state["seed"] is None else _seed_token(), state["seed"]
        self.__init__(state["site"], state["number"], seed, token, _seen=seed)  # type: ignore[misc]


def _seed_token() -> tuple[object, ...]:
    """Objects of which torch.manual_seed replaces at least one."""
    trackers = (
        getattr(torch.cuda, "_lazy_seed_tracker", None),
        getattr(getattr(torch, "xpu", None), "_lazy_seed_tracker", None),
    )
    return tuple(getattr(tracker, "manual_seed_all_cb", None) for tracker in trackers)


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _graph_task() -> int:
    """The number of the backward pass that runs in this thread, −1 outside of any."""
    return torch._C._current_graph_task_id()


def _situation() -> _Situation:
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    backward, grad = _graph_task() != -1, torch.is_grad_enabled()
    if hooks is None and grad and not backward:
        return _PLAIN
    frame, repeats = _checkpoint_frame(hooks[0]) if hooks else (None, False)
    if frame is not None:
        return _Situation(opens=not repeats, repeats=repeats or backward, segments=(frame, *_reentrant()))
    opens = not grad or (hooks is not None and not backward)
    return _Situation(opens, repeats=backward, segments=tuple(_reentrant()))


def _checkpoint_frame(pack: Any) -> tuple[object | None, bool]:
    """The frame of the innermost checkpoint (use_reentrant=False), and whether it is being recomputed.

    torch pushes saved-tensor hooks in both cases and has no other public trace of it: the frame is in
    the closure of the first hook, when recomputing behind a weak reference and a wrapper of dynamo's."""
    cells = [
        cell.cell_contents
        for function in (pack, getattr(pack, "__wrapped__", None))
        for cell in getattr(function, "__closure__", None) or ()
    ]
    for held in cells:
        frame = held() if isinstance(held, weakref.ref) else held
        if isinstance(frame, _CheckpointFrame):
            return frame, frame is not held
    return None, False


def _reentrant() -> Iterator[object]:
    """The calls of checkpoints with use_reentrant=True on the Python stack, innermost first: the `ctx`
    of each, which is the same object in forward and backward."""
    codes = (CheckpointFunction.forward.__code__, CheckpointFunction.backward.__code__)
    at: FrameType | None = sys._getframe()
    while at is not None:
        if at.f_code in codes:
            yield at.f_locals["ctx"]
        at = at.f_back


def _fingerprint(left: Tensor) -> bytes:
    """16 bytes that tell inputs apart: shape, sum and up to 4 entries along every dimension.

    Equal for equal tensors of equal strides. Only computed while a checkpoint is open."""
    flat = left.detach()
    flat = torch.view_as_real(flat) if flat.is_complex() else flat
    few = flat[tuple(slice(None, None, max(1, (n - 1) // 3)) for n in flat.shape)]
    total = flat.sum(dtype=torch.float64 if flat.dtype == torch.float64 else torch.float32)
    facts = torch.cat([few.reshape(-1).double(), total.reshape(1).double()]).cpu()
    return hashlib.blake2b(
        repr(tuple(left.shape)).encode() + facts.numpy().tobytes(), digest_size=16
    ).digest()
