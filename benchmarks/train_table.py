"""Every architecture of saeflow beside SAELens's and dictionary_learning's, on the same rows.

    python benchmarks/train_table.py STORE SCRATCH --saelens PYTHON --dl PYTHON
    python benchmarks/train_table.py STORE SCRATCH --full-size ...

PYTHON are the interpreters of environments that have the peers; without one its cells are
left out. Each architecture is trained at two or three sparsities by each library that has it, one
after another, on one thread, in the same number of steps over the same rows in the same
order. All SAEs are then measured by the same code on the store's held-out rows, and
spliced into the source model as by `saeflow evaluate` (`--score-tokens 0` leaves that out).
`--full-size` instead trains the TopK SAE of 4,608 latents, k 32, on a million rows.

A peer's own learning rate is made for runs a thousand times as long, and some peers do
badly where the rows' mean is as long as their deviation. So each cell of a peer is trained
as the library is (`own`), and on rows less their mean with the rate that saeflow gives TopK
(`helped`), or the same architecture, where that is another (`our-rate`).
Finished cells are kept in SCRATCH and not run again, unless `--redo LIBRARY` says so.
"""

import argparse
import math
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers_rows import export
from train_cells import AT_OUR_RATE, DL, LOOP, OURS, SAELENS, SPARSITIES, TITLES, Bench, Cell
from train_figures import adopt, held_out_figures, reconstruction_scores

from saeflow import open_store
from saeflow.train.folder import find_sae

Row = tuple[Cell, dict[str, Any]]
Curve = list[tuple[float, float]]
"""The logarithm of L0, and FVU per row."""


def main() -> None:
    given = _arguments()
    store = open_store(given.store.resolve())
    scratch = given.scratch.resolve() / f"{given.rows}-{given.batch_size}-{given.d_sae}"
    bench = Bench(
        store=given.store.resolve(),
        rows=scratch / "rows",
        cells=scratch / "cells",
        n_rows=given.rows,
        batch_size=given.batch_size,
        d_sae=given.d_sae,
        pythons={k: v for k, v in ((SAELENS, given.saelens), (DL, given.dl)) if v},
    )
    export(bench.store, bench.rows, given.rows, given.batch_size, seed=0)
    cells = list(_cells(given))
    for number, cell in enumerate(cells, 1):
        result = None if cell.library in given.redo else bench.result(cell)
        if result is None and not given.print_only:
            print(f"{number} of {len(cells)}: {cell.name}", flush=True)
            result = bench.train(cell)
            folder = find_sae(bench.cells / cell.name / "run")
            if cell.library != OURS:
                adopt(folder, store)
            result |= held_out_figures(folder, store)
            bench.keep(cell, result)
    if given.score_tokens and not given.print_only:
        _score(bench, cells, given.model, given.score_tokens)
    done = [(cell, result) for cell in cells if (result := bench.result(cell)) is not None]
    print(table(done), comparison(done), sep="\n\n")


def _score(bench: Bench, cells: list[Cell], model: str | None, tokens: int) -> None:
    """Add the reconstruction score to the results that don't have it yet."""
    missing = {
        cell.name: (cell, result)
        for cell in cells
        if (result := bench.result(cell)) is not None and result.get("score_tokens") != tokens
    }
    if not missing:
        return
    folders = {name: find_sae(bench.cells / name / "run") for name in missing}
    for name, scored in reconstruction_scores(folders, model, tokens).items():
        cell, result = missing[name]
        bench.keep(cell, result | scored | {"score_tokens": tokens})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peers on the same rows.")
    parser.add_argument("store", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--rows", type=int, default=256_000)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=2304)
    parser.add_argument("--architectures", nargs="*", default=list(SPARSITIES[OURS]))
    parser.add_argument("--only", nargs="*", default=list(SPARSITIES), choices=list(SPARSITIES))
    parser.add_argument("--variants", nargs="*", default=["helped", "our-rate", "own"])
    parser.add_argument("--sparsities", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--redo", nargs="*", default=[], choices=list(SPARSITIES))
    parser.add_argument("--saelens", metavar="PYTHON")
    parser.add_argument("--dl", metavar="PYTHON")
    parser.add_argument("--model", help="the source model, if it is not where it was")
    parser.add_argument("--score-tokens", type=int, default=4096)
    parser.add_argument("--full-size", action="store_true")
    parser.add_argument("--print-only", action="store_true")
    given = parser.parse_args()
    if given.full_size:
        given.rows, given.d_sae = 1_000_000, 4608
        given.architectures, given.sparsities = ["topk"], [0]
    return given


def _cells(given: argparse.Namespace) -> Iterator[Cell]:
    """The cells that were asked for and can be run, an architecture after another."""
    have = {OURS, LOOP} | {name for name, p in ((SAELENS, given.saelens), (DL, given.dl)) if p}
    for family in given.architectures:
        for library in given.only:
            if library not in have and not given.print_only:
                continue
            for variant in ["own"] if library in (OURS, LOOP) else given.variants:
                by_arch = AT_OUR_RATE if variant == "our-rate" else SPARSITIES
                for arch, sparsities in by_arch[library].items():
                    cells = [Cell(library, arch, sparsity, variant) for sparsity in sparsities]
                    chosen = [cells[which] for which in given.sparsities if which < len(cells)]
                    yield from (cell for cell in chosen if cell.family == family)


def table(rows: list[Row]) -> str:
    """One line a cell."""
    lines = [
        "| arch | sparsity | who | L0 | FVU | FVU per row | score | dead | silent | CPU s |",
        "|---" * 10 + "|",
    ]
    for cell, r in rows:
        scored = r.get("score")
        lines.append(
            f"| {cell.arch} | {cell.sparsity:g} | {_who(cell)} | {r['l0']:.1f} | {r['fvu']:.4f} "
            f"| {r['row_fvu']:.4f} | {'-' if scored is None else f'{scored:.4f}'} "
            f"| {r['dead']:.1%} | {r['silent']:.1%} | {r['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines)


def comparison(rows: list[Row]) -> str:
    """FVU per row at equal L0, ours over the peer's.

    Sparsities make a line of FVU per row over the logarithm of L0, straight between two.
    It is read at both ends and in the middle of the stretch of L0 that the two lines share;
    where they share none, in the middle between them, and that is said.
    """
    lines = ["| architecture | peer | L0: ours / peer = ratio | |", "|---|---|---|---|"]
    curves: dict[str, dict[str, Curve]] = {}
    for cell, r in rows:
        curve = curves.setdefault(cell.family, {}).setdefault(_who(cell), [])
        curve.append((math.log(max(r["l0"], 0.1)), r["row_fvu"]))
    for family, by_who in curves.items():
        ours = by_who.pop(TITLES[OURS], None)
        for who, peer in by_who.items() if ours else ():
            ends, shared = _shared(ours, peer)
            told = "; ".join(
                f"{math.exp(x):.1f}: {(a := _read(ours, x)):.4f} / {(b := _read(peer, x)):.4f} "
                f"= {a / b:.3f}"
                for x in ends
            )
            lines.append(f"| {family} | {who} | {told} | {'' if shared else 'extrapolated'} |")
    return "\n".join(lines)


def _who(cell: Cell) -> str:
    version = {"relu-april": ", April update", "topk-by-column": ", pairs never stored"}
    variant = {"helped": ", helped", "our-rate": ", at our rate"}.get(cell.variant, "")
    return TITLES[cell.library] + version.get(cell.arch, "") + variant


def _shared(a: Curve, b: Curve) -> tuple[tuple[float, ...], bool]:
    """The stretch of L0 that both curves have, and its middle; or that of the gap, and False."""
    low = max(min(a), min(b))[0]
    high = min(max(a), max(b))[0]
    if abs(high - low) < math.log(1.02):  # as good as one point
        return ((low + high) / 2,), True
    middle = (low + high) / 2
    return ((low, middle, high), True) if low < high else ((middle,), False)


def _read(curve: Curve, at: float) -> float:
    """The line through the two points that it is between, or that are nearest."""
    points = sorted(curve)
    place = bisect_left(points, (at, 0.0), 1, max(len(points) - 1, 1))
    (x0, y0), (x1, y1) = points[place - 1], points[min(place, len(points) - 1)]
    if x1 - x0 < 1e-6:
        return y0
    return y0 + (at - x0) / (x1 - x0) * (y1 - y0)


if __name__ == "__main__":
    main()
