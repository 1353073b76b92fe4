"""Arms run in turn, the same number of times, and leave the process as they found it."""

from __future__ import annotations

import gc
import math

import pytest
import torch

from fxapprox.errors import RequestError
from fxapprox.measure import Budget
from fxapprox.measure.timing import LEAST, WARM_UP, Ratio, Timing, in_turn, torch_threads


def test_arms_alternate_and_change_places_after_a_warm_up() -> None:
    ran: list[str] = []
    found = in_turn({name: lambda name=name: ran.append(name) for name in "ab"}, Budget(repeat=3))  # type: ignore[misc]
    assert "".join(ran) == "ab" * WARM_UP + "ab" + "ba" + "ab"
    assert {name: len(timing.samples) for name, timing in found.items()} == {"a": 3, "b": 3}


def test_a_budget_of_seconds_is_kept_but_for_the_least() -> None:
    assert len(in_turn({"a": lambda: None}, Budget(seconds=1e-9))["a"].samples) == LEAST
    assert len(in_turn({"a": lambda: None}, Budget(seconds=0.02))["a"].samples) > LEAST


def test_ticks_never_go_back_and_end_at_one() -> None:
    for budget in (Budget(repeat=4), Budget(seconds=0.01)):
        ticks: list[float] = []
        in_turn({"a": lambda: None}, budget, tick=ticks.append)
        assert ticks == sorted(ticks)
        assert ticks[WARM_UP - 1] == 0.0
        assert ticks[WARM_UP] > 0
        assert ticks[-1] == 1.0


def test_what_waits_is_asked_around_every_arm() -> None:
    ran: list[str] = []
    in_turn({"a": lambda: ran.append("a")}, Budget(repeat=1), wait=lambda: ran.append("wait"))
    assert ran == ["a"] * WARM_UP + ["wait", "a", "wait"]


def test_no_garbage_is_collected_while_an_arm_runs() -> None:
    seen: list[bool] = []
    in_turn({"a": lambda: seen.append(gc.isenabled())}, Budget(repeat=2))
    assert seen[WARM_UP:] == [False, False]
    assert gc.isenabled()


def test_the_ratio_is_taken_within_each_round() -> None:
    """A machine that gets three times slower half way changes every time and no quotient."""
    slow = [1.0, 1.0, 3.0, 3.0]
    ratio = Ratio.of(Timing(tuple(2 * s for s in slow)), Timing(tuple(slow)))
    assert (ratio.median, ratio.quartiles) == (2.0, (2.0, 2.0))
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).quartiles == (2.0, 4.0)
    assert Timing((1.0,)).quartiles == (1.0, 1.0)


def test_threads_come_back_whatever_happens() -> None:
    before = torch.get_num_threads()

    def interrupted() -> None:
        with torch_threads(before + 1) as number:
            assert number == torch.get_num_threads() == before + 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.get_num_threads() == before
    with torch_threads(None) as number:
        assert number == before


@pytest.mark.parametrize("budget", [Budget(0), Budget(-1.0), Budget(math.inf), Budget(1.0, 0)])
def test_what_is_no_budget(budget: Budget) -> None:
    with pytest.raises(RequestError):
        budget.check()
