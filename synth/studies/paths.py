"""How much of a netlist's area and longest path is luck: the same unit mapped over and over."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from m2xfp.results import read_figures
from m2xfp.rtl.catalog import Instance
from m2xfp.synth.flow.pdk import Pdk
from m2xfp.synth.flow.yosys import ABC_SCRIPTS, BUILD, FlowOptions, yosys_command
from m2xfp.synth.report.figures import WORKERS, measure
from m2xfp.tables import aligned_table

__all__ = ["measure_paths", "path_table", "tables"]


def measure_paths(
    instances: Sequence[Instance],
    pdk: Pdk,
    seeds: Iterable[int],
    clock_ns: float = 1.0,
    build: Path = BUILD,
) -> dict[str, Any]:
    """Map instances by each abc script with each seed; return area and path of every netlist.

    Parameters
    ----------
    instances, pdk
        What, onto which library.
    seeds
        See ``FlowOptions``.
    clock_ns
        What ``speed`` sizes gates for.
    build
        Folder of the cache.
    """
    from m2xfp.progress import track

    runs = [
        (instance, FlowOptions(abc=script, clock_ns=clock_ns, seed=seed))
        for instance in instances
        for script in ABC_SCRIPTS
        for seed in seeds
    ]
    rows = []
    with ThreadPoolExecutor(WORKERS) as pool:
        futures = [pool.submit(measure, made, pdk, how, build=build) for made, how in runs]
        try:
            for future, (_, how) in zip(
                track(futures, desc=f"Synthesis, {pdk.name}"), runs, strict=True
            ):
                row = future.result()
                rows.append(
                    {
                        "unit": row.unit,
                        "config": row.config,
                        "abc": how.abc,
                        "seed": how.seed,
                        "area_um2": row.area_um2,
                        "critical_path_ns": row.critical_path_ns,
                        "path_start": row.path_start,
                        "path_end": row.path_end,
                    }
                )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {
        "pdk": pdk.name,
        "pdk_title": pdk.title,
        "yosys": yosys_command()[1],
        "clock_ns": clock_ns,
        "rows": rows,
    }


def path_table(figures: Mapping[str, Any]) -> str:
    """Return areas and paths of each script as markdown: of seed 0, and of all."""
    titles = ["unit", "config", "abc script", "netlists", "area um2", "smallest", "largest"]
    table = [[*titles, "path ns", "best", "median", "worst", "worst / best"]]
    kinds = dict.fromkeys((r["unit"], r["config"], r["abc"]) for r in figures["rows"])
    for kind in kinds:
        rows = [r for r in figures["rows"] if (r["unit"], r["config"], r["abc"]) == kind]
        usual = next((r for r in rows if r["seed"] == 0), None)
        found = {name: [r[name] for r in rows] for name in ("area_um2", "critical_path_ns")}
        area, path = found["area_um2"], found["critical_path_ns"]
        table.append(
            [
                *kind,
                str(len(rows)),
                f"{usual['area_um2']:.0f}" if usual else "",
                f"{min(area):.0f}",
                f"{max(area):.0f}",
                f"{usual['critical_path_ns']:.2f}" if usual else "",
                f"{min(path):.2f}",
                f"{median(path):.2f}",
                f"{max(path):.2f}",
                f"{max(path) / min(path) - 1:+.0%}",
            ]
        )
    return (
        f"{figures['pdk_title']}; {figures['yosys']}; `speed` for {figures['clock_ns']:g} ns; "
        f"area and path of the netlist as it comes, and of all.\n\n{aligned_table(table)}"
    )


def tables(results: Path) -> dict[str, str]:
    """Return the table of each accepted library, ``paths-LIBRARY``."""
    return {path.stem: path_table(read_figures(path)) for path in results.glob("paths-*.json")}
