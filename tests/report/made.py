"""Sites, plans and captures made by hand, for reports."""

from __future__ import annotations

from fxapprox.capture._types import Edge, Note, Operator
from fxapprox.choices import Choice, Sampled, Scope
from fxapprox.plan import Decision, Plan, PlanWarning
from fxapprox.policies import policies
from fxapprox.sites import Product, Site

BATCH_NORM = (
    "52 sites before batch norm under an unscaled forward policy (topk): the running statistics will describe"
    " the sampled network"
)


def site(
    name: str,
    into: int,
    out: int,
    *,
    batch: int = 32,
    side: int = 0,
    kernel: int = 1,
    depth: int = 1,
    **facts: object,
) -> Site:
    """A linear layer, or a convolution on a plane of `side` × `side`."""
    plane = (side, side) if side else ()
    flops = 2 * batch * into * out * kernel * kernel * (side * side if side else 1)
    values: dict[str, object] = {
        "kind": "conv2d" if side else "linear",
        "op": "Conv2d" if side else "Linear",
        "weight": f"{name}.weight",
        "source": "net.py:12",
        **facts,
    }
    return Site(
        id=name, owner=name, call=None, part="",
        products={
            "forward": Product(into, 1, flops, "in features"),
            "grad_input": Product(out, 1, flops if depth else 0, "out features"),
            "grad_weight": Product(batch, 1, flops, "batch"),
        },
        input_shape=(batch, into, *plane), weight_shape=(out, into, *((kernel, kernel) if side else ())),
        output_shape=(batch, out, *plane), dtype="float32", depth=depth, height=9, **values,  # type: ignore[arg-type]
    )  # fmt: skip


def choice(policy: str = "topk", scope: Scope = "forward", keep: float = 0.5, **options: object) -> Choice:
    return Choice.of_scope(scope, Sampled(policies.get(policy)(), keep, **options))  # type: ignore[arg-type]


def decided(
    one: Site, chosen: Choice | None, rule: str = "wide", reason: str = 'kind conv2d (rule "wide")'
) -> Decision:
    return Decision(one, chosen, rule, reason)


def resnet50(**options: object) -> Plan:
    """The 54 sites of a ResNet-50 at 224 × 224; the first and the last stay exact."""
    sites = [site("conv1", 3, 64, side=112, kernel=7, depth=0)]
    into, side = 64, 56
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            depth = len(sites)
            sites.append(site(f"{name}.conv1", into, width, side=side, depth=depth))
            sites.append(site(f"{name}.conv2", width, width, side=side, kernel=3, depth=depth + 1))
            sites.append(site(f"{name}.conv3", width, 4 * width, side=side, depth=depth + 2))
            if block == 0:
                sites.append(site(f"{name}.downsample.0", into, 4 * width, side=side, depth=depth))
            into = 4 * width
        side //= 2
    sites.append(site("fc", 2048, 1000, depth=len(sites)))
    ends = (sites[0], sites[-1])
    left = 'left exact: depth 0 and height 53 in "0, -1" (rule "leave the stem and the head", rules.toml:4)'
    return Plan(
        "models/resnet.py:ResNet50",
        "0123456789abcdef",
        tuple(
            decided(one, None, "leave the stem and the head", left)
            if one in ends
            else decided(one, choice(**options), "wide convolutions")  # type: ignore[arg-type]
            for one in sites
        ),
        (PlanWarning("batch-norm", BATCH_NORM, ("conv1",), "re-estimate the statistics"),),
    )


class Captured:
    """What a report reads of a capture."""

    rung = "trace"
    seconds = {"trace": 0.5, "check": 1.25}  # noqa: RUF012 (never changed)

    def __init__(
        self,
        total_flops: int,
        notes: tuple[Note, ...] = (),
        operators: tuple[Operator, ...] = (),
        edges: tuple[Edge, ...] = (),
    ) -> None:
        self.total_flops, self.notes, self.operators, self.edges = total_flops, notes, operators, edges
