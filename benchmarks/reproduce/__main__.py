"""Do an experiment of docs/evidence.md again, or go on with it.

    python -m benchmarks.reproduce               # which there are
    python -m benchmarks.reproduce memory        # does what is left of it

Each run's rows are added to docs/results/NAME.csv as it ends, and figures and tables are made anew; a run
that was killed goes on from its last epoch. Several processes may share an experiment's runs.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence

import torch
from rich.console import Console

from ..datasets import folder
from ._experiment import experiments
from ._frame import Places, Wanted, carry_out, listing


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help="the experiment; without it they are listed")
    parser.add_argument("--data", help="the data folder; default: FXAPPROX_DATA")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="*", metavar="GLOB", help="only the arms that fit")
    parser.add_argument("--threads", type=int, default=1, help="of torch; 1 unless told")
    parser.add_argument("--limit", type=float, metavar="MINUTES", help="start no new run after so long")
    parser.add_argument("--timing", action="store_true", help="the runs that measure seconds, and no others")
    options = parser.parse_args(arguments)
    found, console = experiments(), Console()
    if options.name is None:
        console.print(listing(found, options.seeds, Places()))
        return
    if options.name not in found:
        near = difflib.get_close_matches(options.name, found, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise SystemExit(
            f"error: there is no experiment {options.name!r}\n  {hint}there are: {', '.join(found)}"
        )
    torch.set_num_threads(options.threads)
    wanted = Wanted(folder(options.data), options.seeds, options.only, options.timing, options.limit)
    carry_out(found[options.name], wanted, Places(), console)


if __name__ == "__main__":
    main()
