"""From a request to a captured model and a plan: what rewrite, inspect and explain begin with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ._options import Asked
from ._running import step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxapprox.capture._types import Capture, Inputs
    from fxapprox.capture.load import Loaded
    from fxapprox.plan import Plan
    from fxapprox.rules import Rule


def decision_rules(asked: Asked) -> Sequence[Rule] | Plan:
    """The rules or the plan that the request names, and the warnings that it silences.

    Raises RequestError where it names none, or two, or an unknown warning."""
    with step("starting torch"):
        from fxapprox.rules import silenced

    return silenced(_named(asked), asked.silence)


def _named(asked: Asked) -> Sequence[Rule] | Plan:
    with step("starting torch"):
        from fxapprox.errors import RequestError
        from fxapprox.plan import Plan
        from fxapprox.recipes import recipe
        from fxapprox.rules import load_rules, rules_from

    files = {"--rules": asked.rules, "--recipe": asked.recipe, "--plan": asked.plan}
    given = [*asked.shorthand[:1], *(name for name, value in files.items() if value)]
    if not given:
        raise RequestError(
            "nothing says what to sample",
            remedy="give --policy topk, or --recipe NAME, or --rules FILE, or --plan FILE",
        )
    if len(given) > 1:
        raise RequestError(
            f"{' and '.join(given)} cannot be given together", remedy="put everything into the rules file"
        )
    if asked.train_steps is not None and not asked.recipe:
        raise RequestError(
            "--train-steps says where the phases of a recipe end, and no recipe is given",
            remedy="give --recipe NAME; a rule of your own names its steps in keep = {schedule = …}",
        )
    if asked.plan:
        return Plan.load(asked.plan)
    if asked.rules:
        return load_rules(asked.rules)
    if asked.recipe:
        return recipe(asked.recipe, steps=asked.train_steps)
    keys = {**asked.keys, **({"keep": _number_or_table(asked.keep)} if asked.keep else {})}
    return rules_from(**keys, **dict(_key_and_value(text) for text in asked.option))


def _number_or_table(text: str) -> Any:
    """A number as people type it (`.5`), else what the text is in a rules file."""
    from fxapprox.toml import read_value

    try:
        return float(text)
    except ValueError:
        return read_value(text)


def _key_and_value(text: str) -> tuple[str, Any]:
    """`KEY=VALUE`; the value as in a rules file where it reads as one, else as a word."""
    from fxapprox.errors import RequestError
    from fxapprox.toml import read_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RequestError(f"--option {text!r} is not KEY=VALUE", remedy="for example: --option scale=none")
    return key, read_value(value)


@contextlib.contextmanager
def loaded(asked: Asked) -> Iterator[tuple[Loaded, Inputs]]:
    """The model and its inputs. Its folder stays on sys.path for the block: its forward may import, too."""
    with step("starting torch"):
        import torch

        from fxapprox.capture.importing import importable
        from fxapprox.capture.inputs import parse_inputs
        from fxapprox.capture.load import load
        from fxapprox.errors import RequestError

    given = parse_inputs(asked.input, asked.seed) if asked.input else None
    torch.manual_seed(asked.seed)
    with step(f"loading {asked.model}"):
        found = load(asked.model, example_inputs=given is None)
    inputs = given or found.inputs
    if inputs is None:
        raise RequestError(
            "there are no example inputs",
            remedy="give --input 32x3x32x32 (once for each), or write example_inputs() in the model's file",
        )
    with importable(found.folder):
        yield found, inputs


@contextlib.contextmanager
def captured(asked: Asked) -> Iterator[Capture]:
    """The model, captured, in the block of `loaded`."""
    with loaded(asked) as (given, inputs):
        from fxapprox.api import check_model
        from fxapprox.capture import capture

        check_model(given.model)
        with step("capturing the model"):
            found = capture(
                given.model, inputs, origin=given.origin, leaf=tuple(asked.leaf), front_end=asked.front_end
            )
        yield found
