"""The random stream of a site: who governs it, and what repeats."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fxapprox.errors import FxApproxError
from fxapprox.sampling.streams import Draw, SiteStream

X = torch.zeros(2, 3)


def numbers(draw: Draw, product: str = "forward") -> list[float]:
    return torch.rand(4, generator=draw.stream(product).generator()).tolist()


def test_manual_seed_governs_and_starts_over() -> None:
    stream = SiteStream("a")
    torch.manual_seed(3)
    first, second = numbers(stream.draw(X)), numbers(stream.draw(X))
    torch.manual_seed(3)  # the same seed again, which torch itself cannot be asked about
    assert [numbers(stream.draw(X)), numbers(stream.draw(X))] == [first, second]
    torch.manual_seed(4)
    assert numbers(stream.draw(X)) not in (first, second)
    assert first != second


def test_site_product_rank_and_number_tell_streams_apart() -> None:
    base = Draw("a", seed=0, number=0, rank=0)
    others = [Draw("b", 0, 0), Draw("a", 1, 0), Draw("a", 0, 1), Draw("a", 0, 0, rank=1)]
    seen = [numbers(base), numbers(base, "grad_input"), numbers(base, "grad_weight"), *map(numbers, others)]
    assert len({tuple(row) for row in seen}) == len(seen)
    assert numbers(base) == numbers(Draw("a", 0, 0))


def test_one_stream_has_one_generator() -> None:
    stream = Draw("a", 0, 0).stream("forward")
    assert stream.generator() is stream.generator()


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before, stream = torch.get_rng_state(), SiteStream("a")
    for _ in range(3):
        numbers(stream.draw(X))
    assert torch.equal(torch.get_rng_state(), before)


def test_drawing_from_the_global_generator_changes_no_draw() -> None:
    torch.manual_seed(0)
    quiet = [numbers(SiteStream("a").draw(X))]
    torch.manual_seed(0)
    torch.rand(5)
    assert [numbers(SiteStream("a").draw(X))] == quiet


def copies(stream: SiteStream) -> list[SiteStream]:
    return [copy.deepcopy(stream), copy.copy(stream), pickle.loads(pickle.dumps(stream))]


def test_copies_go_on_counting() -> None:
    torch.manual_seed(0)
    stream = SiteStream("a")
    stream.draw(X)
    made = copies(stream)
    following = numbers(stream.draw(X))
    assert [numbers(copied.draw(X)) for copied in made] == [following] * 3


def test_copies_of_a_used_stream_start_over_when_seeded_before_or_after() -> None:
    torch.manual_seed(0)
    stream = SiteStream("a")
    first = numbers(stream.draw(X))
    made = copies(stream)
    torch.manual_seed(0)
    made += copies(stream)
    assert [numbers(copied.draw(X)) for copied in (*made, stream)] == [first] * 7


def test_a_stream_resumes_in_another_process() -> None:
    torch.manual_seed(5)
    stream = SiteStream("a")
    stream.draw(X)
    program = (
        "import pickle, sys, torch\n"
        "torch.manual_seed(5)\n"
        "stream = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "draw = stream.draw(torch.zeros(2, 3))\n"
        "print(torch.rand(4, generator=draw.stream('forward').generator()).tolist())\n"
    )
    arguments = [sys.executable, "-c", program, pickle.dumps(stream).hex()]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    assert printed.strip() == str(numbers(stream.draw(X)))


def test_an_initialised_accelerator_does_not_hide_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA in use its queue of call backs stands still; that of the next kind still moves."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    stream = SiteStream("a")
    torch.manual_seed(0)
    first = numbers(stream.draw(X))
    torch.manual_seed(0)
    assert numbers(stream.draw(X)) == first


def test_a_forward_inside_a_backward_with_nothing_checkpointed_is_a_new_one() -> None:
    stream, seen = SiteStream("a"), []

    def look(grad: Tensor) -> None:
        seen.append(stream.draw(X).number)

    stream.draw(X)
    x = torch.ones(2, requires_grad=True)
    x.register_hook(look)
    x.sum().backward()
    assert seen == [1]


def test_a_recomputation_of_another_input_is_an_error() -> None:
    stream = SiteStream("layer3.conv1")
    with torch.no_grad():
        stream.draw(X)
    x = torch.ones(2, requires_grad=True)
    x.register_hook(lambda grad: stream.draw(X + 1))  # type: ignore[func-returns-value]
    with pytest.raises(FxApproxError, match=r"site layer3\.conv1"):
        x.sum().backward()
