"""How a choice is written, in a rules file, in a plan file and in Python, and how it is read.

The same keys everywhere: either `policy` with `keep`, `min_k`, `scope`, `center`, `memory` and the policy's
own options, or one of "exact", "reuse" or a table of those keys for each of `forward`, `grad_input` and
`grad_weight`. Reading collects every problem; nothing is raised before all of them are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from .choices import SCOPES, Choice, Memory, Sampled, Treatment, forgetful, never_served
from .errors import RequestError, one_of
from .policies import AnyPolicy, policies
from .problems import Problem, typed
from .schedules import Schedule, read_keep
from .sites import PRODUCTS

SAMPLED_KEYS = ("policy", "keep", "min_k", "center", "memory")
SHORT_KEYS = (*SAMPLED_KEYS, "scope")
CHOICE_KEYS = (*SHORT_KEYS, *PRODUCTS)


def read_choice(keys: Mapping[str, object], also: Iterable[str] = ()) -> tuple[Choice | None, list[Problem]]:
    """The choice that the keys spell, None for exact, and everything that is wrong with them.

    `also` are keys that have been read already (a rule's conditions): only to suggest names."""
    problems: list[Problem] = []
    keys = {key: value for key, value in keys.items() if value is not None}
    products = [product for product in PRODUCTS if product in keys]
    if products and "policy" not in keys:
        choice = _read_products(keys, products, also, problems)
    elif products:
        problems.append(
            Problem(
                f"policy and {products[0]} exclude each other",
                (products[0],),
                "write policy with scope, or a policy per product",
            )
        )
        return None, problems
    else:
        choice = _read_short(keys, also, problems)
    if choice is not None and not problems and (reason := never_served(choice)) is not None:
        problems.append(
            Problem(reason, ("scope" if "scope" in keys else "grad_weight" if products else "policy",))
        )
    return choice, problems


def _read_short(keys: Mapping[str, object], also: Iterable[str], problems: list[Problem]) -> Choice | None:
    """`policy`, `keep`, `scope` …: one Sampled, spread over the products by its scope."""
    if "policy" not in keys:
        unknown = [key for key in keys if key not in SHORT_KEYS and not _option_owners(key)]
        problems.extend(_unknown_key(key, (*CHOICE_KEYS, *also)) for key in unknown)
        if not unknown or len(keys) > len(unknown):
            problems.append(
                Problem("names no policy", (), 'name one: policy = "topk", or a policy per product')
            )
    sampled = _read_sampled(keys, SHORT_KEYS, also, problems)
    scope = typed(keys, "scope", (str,), problems)
    if scope is not None and scope not in SCOPES:
        problems.append(Problem(f"unknown scope {scope!r}", ("scope",), one_of(scope, SCOPES)))
    elif sampled is not None and sampled.center and scope in ("backward", "grad-weight"):
        problems.append(
            Problem(
                f"center applies to the forward product, and scope {scope!r} leaves that exact",
                ("center",),
                'drop center, or use scope "forward" or "straight-through"',
            )
        )
    elif sampled is not None and sampled.memory and scope not in ("backward", "grad-weight"):
        default = "" if scope else ", the default,"
        problems.append(
            Problem(
                "memory belongs to a weight gradient that is sampled by itself, and scope "
                f'"{scope or "forward"}"{default} does not sample it so',
                ("memory",),
                'add scope = "grad-weight" (or "backward"), or write it into the product\'s table: '
                'grad_weight = { policy = "topk", keep = 0.25, memory = true }',
            )
        )
    if sampled is None or problems:
        return None
    return Choice.of_scope(scope or sampled.policy.scopes[0], sampled)


def _read_products(
    keys: Mapping[str, object], products: Sequence[str], also: Iterable[str], problems: list[Problem]
) -> Choice | None:
    """A treatment per product; what is not named is exact."""
    for key in keys:
        if key in SHORT_KEYS:
            problems.append(
                Problem(
                    f"{key} beside {products[0]}: where products are named, each has its own",
                    (key,),
                    f"move it into the product's table: {products[0]} = {{ policy = …, {key} = … }}",
                )
            )
        elif key not in PRODUCTS:
            problems.append(_unknown_key(key, (*CHOICE_KEYS, *also)))
    treatments = {product: _read_treatment(product, keys[product], problems) for product in products}
    forward = treatments.get("forward", "exact")
    for product in products:
        if treatments[product] == "reuse" and forward == "exact":
            problems.append(
                Problem(
                    f'{product} = "reuse" reuses the pairs drawn forward, and forward is exact',
                    (product,),
                    f"name a policy for forward, or one for {product}",
                )
            )
    if problems or all(treatment == "exact" for treatment in treatments.values()):
        return None
    return Choice(
        forward, treatments.get("grad_input", "exact"), treatments.get("grad_weight", "exact"), "per product"
    )


def _read_treatment(product: str, value: object, problems: list[Problem]) -> Treatment:
    words = ("exact",) if product == "forward" else ("exact", "reuse")
    if isinstance(value, str) and value in words:
        return cast(Treatment, value)
    if isinstance(value, Mapping):
        found: list[Problem] = []
        if "policy" not in value:
            found.append(Problem("names no policy", (), 'name one: { policy = "topk", keep = 0.5 }'))
        sampled = _read_sampled(value, SAMPLED_KEYS, (), found)
        if sampled is not None and sampled.center and product != "forward":
            found.append(Problem("center applies to the forward product only", ("center",)))
        if sampled is not None and sampled.memory and product != "grad_weight":
            remedy = "move it into the table of grad_weight"
            found.append(Problem("memory applies to grad_weight only", ("memory",), remedy))
        problems.extend(
            Problem(f"{product}: {problem.message}", (product, *problem.key), problem.remedy)
            for problem in found
        )
        return sampled or "exact"
    listed = " or ".join(f'"{word}"' for word in words)
    problems.append(
        Problem(
            f'{product} must be {listed} or a table such as {{ policy = "topk", keep = 0.5 }}, not {value!r}',
            (product,),
        )
    )
    return "exact"


def _read_sampled(
    keys: Mapping[str, object], allowed: tuple[str, ...], also: Iterable[str], problems: list[Problem]
) -> Sampled | None:
    """A Sampled from its keys; None for the policy "exact", and where there are problems."""
    before = len(problems)
    name = typed(keys, "policy", (str,), problems)
    keep = read_keep(keys.get("keep"), problems)
    min_k = typed(keys, "min_k", (int,), problems)
    center = typed(keys, "center", (bool,), problems)
    memory = _read_memory(keys, problems)
    if min_k is not None and min_k < 1:
        problems.append(Problem(f"min_k = {min_k} is less than 1", ("min_k",)))
    options = {key: value for key, value in keys.items() if key not in allowed}
    if memory is not None and name in policies.all():
        options = _unscaled(policies.all()[name]) | options
    policy = None
    if name is not None:
        policy = _read_policy(name, options, (*allowed, *also), problems)
    if policy is not None and policy.own_keep is not None:
        own = " and ".join(policy.sized_by)
        problems.extend(
            Problem(
                f"{key} beside policy {name!r}, which has a size of its own", (key,), f"set {own} instead"
            )
            for key in ("keep", "min_k")
            if key in keys
        )
    if policy is None or len(problems) > before or name == "exact":
        return None
    if memory is not None and (reason := forgetful(policy)) is not None:
        problems.append(Problem(reason, ("memory",), f"use one of {', '.join(_with_memory())}"))
        return None
    return Sampled(
        policy,
        keep=0.5 if keep is None else keep,
        min_k=1 if min_k is None else min_k,
        center=bool(center),
        memory=memory,
    )


def _read_memory(keys: Mapping[str, object], problems: list[Problem]) -> Memory | None:
    """`true`, or a table with the decay."""
    value = keys.get("memory")
    if value is None or isinstance(value, bool):
        return Memory() if value else None
    if not isinstance(value, Mapping):
        message = f"memory must be true, false or a table such as {{ decay = 0.9 }}, not {value!r}"
        problems.append(Problem(message, ("memory",)))
        return None
    problems.extend(
        Problem(f"unknown key {key!r} of memory", ("memory", key), one_of(key, ("decay",)))
        for key in value
        if key != "decay"
    )
    decay = typed(value, "decay", (float, int), problems)
    if decay is not None and not 0 < decay <= 1:
        problems.append(Problem(f"decay = {decay} is outside 0 < decay <= 1", ("memory", "decay")))
    return Memory() if decay is None else Memory(float(decay))


def _unscaled(cls: type[AnyPolicy]) -> dict[str, object]:
    """The option that leaves rows as they are, where a policy has one: a memory must not meet scaled rows."""
    return {"scale": "none"} if "none" in get_args(option_types(cls).get("scale")) else {}


def _with_memory() -> list[str]:
    """Names of the policies that a memory goes with."""
    return [
        name
        for name, cls in policies.all().items()
        if cls.samples == "pairs"
        and cls.size == "k"
        and cls.scores != "weight"
        and (not cls.unbiased or _unscaled(cls))
    ]


def _read_policy(
    name: str, options: Mapping[str, object], other_keys: tuple[str, ...], problems: list[Problem]
) -> AnyPolicy | None:
    """The policy with its options; None where one of them is wrong."""
    known = policies.all()
    if name not in known:
        problems.append(Problem(f"unknown policy {name!r}", ("policy",), one_of(name, known)))
        unknown = [option for option in options if not _option_owners(option)]
        problems.extend(_unknown_key(option, other_keys) for option in unknown)
        return None
    cls = known[name]
    own = option_types(cls)
    found = [_option_problem(name, own, key, value, other_keys) for key, value in options.items()]
    wrong = [problem for problem in found if problem is not None]
    problems.extend(wrong)
    if wrong:
        return None
    try:
        return cast(Callable[..., AnyPolicy], cls)(**options)
    except (RequestError, TypeError, ValueError) as error:
        # only the policy itself knows how its options must fit together
        message = error.message if isinstance(error, RequestError) else f"policy {name!r}: {error}"
        remedy = error.remedy if isinstance(error, RequestError) else None
        problems.append(Problem(message, (next(iter(options), "policy"),), remedy))
        return None


def option_types(cls: type[AnyPolicy]) -> dict[str, Any]:
    """A policy's own options: name → annotation."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cast(Any, cls)) if field.init}


def _option_problem(
    policy: str, own: Mapping[str, Any], key: str, value: object, other_keys: tuple[str, ...]
) -> Problem | None:
    if key not in own:
        owners = _option_owners(key)
        if owners:
            takes = f"{policy!r} takes " + (", ".join(own) if own else "no options")
            return Problem(
                f"{key} is an option of policy {', '.join(owners)}, not of {policy!r}", (key,), takes
            )
        return _unknown_key(key, (*other_keys, *own))
    annotation = own[key]
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if value not in choices:
            remedy = one_of(str(value), map(str, choices))
            return Problem(f"{key} = {value!r} is not a value of policy {policy!r}", (key,), remedy)
    elif annotation in (str, int, float, bool):
        found: list[Problem] = []
        typed({key: value}, key, (float, int) if annotation is float else (annotation,), found)
        return found[0] if found else None
    return None


def _option_owners(key: str) -> list[str]:
    """Names of the policies that have an option of this name."""
    return [name for name, cls in policies.all().items() if key in option_types(cls)]


def _unknown_key(key: str, known: Iterable[str]) -> Problem:
    return Problem(f"unknown key {key!r}", (key,), one_of(key, known))


def spell_choice(choice: Choice | None) -> dict[str, object]:
    """The keys that `read_choice` turns into this choice, every value written out."""
    if choice is None:
        return {"policy": "exact"}
    if choice.scope != "per product":
        treatments = [choice.treatment(product) for product in PRODUCTS]
        for sampled in treatments:  # the last one of a scope has its memory
            if isinstance(sampled, Sampled) and choice == Choice.of_scope(choice.scope, sampled):
                return _spell_sampled(sampled, scope=choice.scope)
    return {
        product: _spell_sampled(treatment) if isinstance(treatment, Sampled) else treatment
        for product in PRODUCTS
        for treatment in (choice.treatment(product),)
    }


def _spell_sampled(sampled: Sampled, scope: str | None = None) -> dict[str, object]:
    keys: dict[str, object] = {"policy": sampled.policy.name}
    if sampled.policy.own_keep is None:
        keep = sampled.keep.spelled() if isinstance(sampled.keep, Schedule) else sampled.keep
        keys |= {"keep": keep, "min_k": sampled.min_k}
    if scope is not None:
        keys["scope"] = scope
    if sampled.center:
        keys["center"] = True
    if sampled.memory:
        keys["memory"] = True if sampled.memory.decay == 1 else {"decay": sampled.memory.decay}
    for option in option_types(type(sampled.policy)):
        value = getattr(sampled.policy, option)
        if value is not None:
            keys[option] = value
    return keys
