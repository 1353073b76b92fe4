"""The tables of speed in the pages, made from docs/results, between `<!-- suite:layers -->` and
`<!-- end -->`. Where there are no results there is no table.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .reproduce._frame import Places
from .reproduce._pages import fill
from .store import RESULTS
from .turns import best

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/performance.md")
Row = dict[str, Any]


def tables(folder: Path = RESULTS) -> dict[str, str]:
    """Every table by name, empty where there are no results."""
    suite, rivals, gate = (_read(folder / f"{name}.json") for name in ("suite", "rivals", "gate"))
    return {
        "layers": _about(layers(_under(suite, "layers/")), suite, "layers/"),
        "readme": _about(readme(suite), suite, ""),
        "steps": _about(steps(_under(suite, "steps/")), suite, "steps/"),
        "others": _about(costs(suite), suite, ""),
        "rivals-layers": _about(rivalry(_under(rivals, "layers/")), rivals, "layers/"),
        "rivals-nets": _about(rivalry(_under(rivals, "nets/")), rivals, "nets/"),
        "scale": scales(folder),
        "gate": gated(folder / "gate.json") if gate else "",
    }


def write() -> None:
    """Put every table in its place."""
    fill([ROOT / name for name in PAGES], "suite", tables(), Places().work / "pages.lock")


def layers(rows: Sequence[Row]) -> str:
    """Exact, topk (with and without the fused kernels) and the limit; how near topk comes to it, and pps and
    bernoulli beside topk."""
    head = ["layer, scope, keep", "exact, ms", "topk, ms", "limit, ms", "unfused, ms"]
    head += ["exact/topk", "limit/topk", "topk/pps", "topk/bernoulli"]
    lines = []
    for row in rows:
        claims = {claim["what"]: claim for claim in row["claims"]}
        forms = [*claims["exact/topk"]["forms"], "limit"]
        shown = [claims[what] for what in ("exact/topk", "limit/topk", "topk/pps", "topk/bernoulli")]
        name = row["name"].removeprefix("layers/")
        unfused = _ms(row, "unfused") if "unfused" in row["milliseconds"] else "–"
        lines.append([name, *(_ms(row, form) for form in forms), unfused, *map(_claimed, shown)])
    return _table(head, lines, 1)


def steps(rows: Sequence[Row]) -> str:
    """A line for each rewrite of a net; the exact side in its best form."""
    head = ["net", "sampled", "exact, ms", "sampled, ms", "exact/sampled", "quartiles"]
    lines = []
    for row in rows:
        for claim in row["claims"]:
            exact, ours = claim["forms"]
            low, _, high = claim["value"]
            times = [_ms(row, exact), _ms(row, ours)]
            lines.append([row["title"], ours, *times, _claimed(claim), f"{low:.2f}–{high:.2f}"])
    return _table(head, lines, 2)


def costs(rows: Sequence[Row]) -> str:
    """Memory, starts and the gate's calibration."""
    found = [row for row in rows if row["name"].startswith(("memory/", "start/", "gate/"))]
    lines = []
    for row in found:
        for claim in row["claims"]:
            what = f"{row['title']}: " if "title" in row else ""
            what += f"peak memory of training, {claim['what']}" if "megabytes" in row else claim["what"]
            bound = "less than " if claim["unit"] == " s" else "more than "
            value = f"{claim['value'][1]:.2f}{claim['unit']}"
            lines.append([what, value, f"{bound}{claim['target']:g}{claim['unit']}", _yes(claim)])
    return _table(["what", "measured", "promised", "kept"], lines, 1)


def rivalry(rows: Sequence[Row]) -> str:
    """All contenders of each row, each in its best memory format, the fastest first."""
    lines = []
    for row in rows:
        times = row["milliseconds"]
        claims = {claim["what"]: f"{claim['value'][1]:.2f}×" for claim in row["claims"]}
        forms = sorted((best(times, name) for name in row["contenders"]), key=lambda form: times[form][1])
        for form in forms:
            name = form.partition(" ")[0]
            low, median, high = times[form]
            against = [claims.get(f"exact/{name}", "1.00×"), claims.get(f"{name}/ours", "1.00×")]
            if name == "exact":
                against[1] = claims["exact/ours"]
            told = f"{form} ({row['compiling'][form]})" if form in row["compiling"] else form
            lines.append([row["title"], told, f"{median:.2f}", f"{low:.2f}–{high:.2f}", *against])
        lines += [[row["title"], name, why, "", "", ""] for name, why in row.get("failed", {}).items()]
    return _table(["case", "contender", "ms", "quartiles", "exact/it", "it/ours"], lines, 2)


def readme(rows: Sequence[Row]) -> str:
    """Layers at keep 0.5 forward, topk, and the nets: few columns."""
    lines = []
    for row in rows:
        kind, _, name = row["name"].partition("/")
        if kind == "layers" and name.endswith(" forward 0.5"):
            claims = {claim["what"]: claim["value"][1] for claim in row["claims"]}
            ratios = [claims["exact/topk"], claims["exact/limit"]]
            lines.append([name.partition(" ")[0], *(f"{ratio:.2f}×" for ratio in ratios)])
        if kind == "steps":
            for claim in row["claims"]:
                ours = claim["what"].removeprefix("exact/")
                lines.append([f"{row['title']}, {ours}", f"{claim['value'][1]:.2f}×", ""])
    return _table(["", "faster than exact", "the limit"], lines, 1)


def scales(folder: Path) -> str:
    """The pictures that there are."""
    titles = {
        "linear": "Linear layers: cost and gain against batch, width, depth, keep and threads",
        "conv": "Convolutions: cost and gain against batch, channels, depth, keep and threads",
        "rewrite": "Seconds of a rewrite against the number of sites",
    }
    there = {kind: title for kind, title in titles.items() if (folder / f"scale-{kind}.svg").exists()}
    return "\n\n".join(f"![{title}](results/scale-{kind}.svg)" for kind, title in there.items())


def gated(path: Path) -> str:
    """Worst, median and best of the ratios after the gate (and without it, where measured)."""
    table = json.loads(path.read_text(encoding="utf-8"))
    names = {"gated": "with the gate", "ungated": "without it"}
    lines = []
    for arm, one in table["totals"].items():
        worst, best = one["worst"], one["best"]
        cells = [f"{worst[0]:.2f}× ({worst[1]})", f"{one['median']:.2f}×", f"{best[0]:.2f}× ({best[1]})"]
        lines.append([names[arm], str(one["models"]), *cells])
    text = _table(["exact/rewritten", "models", "worst", "median", "best"], lines, 1)
    return _made([row for row in table["rows"] if "about" in row], text)


def _read(path: Path) -> list[Row]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def _under(rows: Sequence[Row], prefix: str) -> list[Row]:
    return [row for row in rows if row["name"].startswith(prefix)]


def _ms(row: Row, form: str) -> str:
    return f"{row['milliseconds'][form][1]:.2f}"


def _claimed(claim: Row) -> str:
    """The ratio, and its target where there is one: bold where it is not reached."""
    text = f"{claim['value'][1]:.2f}×"
    if claim["target"] is None:
        return text
    text += f" (≥ {claim['target']:g})"
    return text if claim["reached"] else f"**{text}**"


def _yes(claim: Row) -> str:
    return "yes" if claim["reached"] else "**no**"


def _about(table: str, rows: Sequence[Row], prefix: str) -> str:
    return _made([row for row in rows if row["name"].startswith(prefix)], table)


def _made(rows: Sequence[Row], table: str) -> str:
    """The table with a line that says where and when its rows were measured."""
    if not table:
        return ""

    def told(key: str) -> str:
        return ", ".join(sorted({str(row["about"][key]) for row in rows}))

    return f"{told('cpu')}, threads: {told('threads')}, torch {told('torch')}, {told('date')}.\n\n{table}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], text: int) -> str:
    """Markdown; the first `text` columns are words, the others numbers."""
    if not lines:
        return ""
    rule = ["---"] * text + ["---:"] * (len(head) - text)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])
