"""How fast raw tables become stays and hourly EHR on disk, and in how much memory.

    python benchmarks/prepare_speed.py --mimic-iv FOLDER [--scratch FOLDER] [--repeats 3]

The input is made here: FOLDER (tables of MIMIC-IV's shape) is inflated, each copy with identifiers of its own, and
written as plain and gzipped CSV. Each measurement is a process of its own, whose resource usage the system counts:
wall time, CPU time and peak resident memory. A bare DuckDB count over the same event tables gives the floor. Laboratory
events are inflated and counted, too, but preparation does not read them: no variable comes from them.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

from client.prepare.pipeline import prepare_ehr
from client.prepare.profile import load_profile
from client.prepare.raw import connect, find_table
from client.prepare.rejections import Rejections
from client.prepare.stays import read_stays
from client.prepare.writer import write_table

TABLES = ("hosp/patients", "hosp/admissions", "icu/icustays", "icu/chartevents", "icu/outputevents", "hosp/labevents")
EVENTS = ("icu/chartevents", "icu/outputevents", "hosp/labevents")
IDENTIFIERS = ("subject_id", "hadm_id", "stay_id")
COPY_STEP = 100_000_000
"""Distance between the identifiers of two copies; those of MIMIC have eight digits."""
CASES = (("x20, plain CSV", 20, False), ("x20, gzipped CSV", 20, True), ("x100, plain CSV", 100, False))
TARGETS = {"x20, plain CSV": (8.0, 2.0), "x20, gzipped CSV": (15.0, 2.0), "x100, plain CSV": (None, 4.0)}
"""Wall seconds and peak gigabytes aimed at; x100 may take 6 times as long as x20 from plain CSV."""


def inflate(source: Path, out: Path, copies: int, *, gzipped: bool) -> None:
    """Write the tables of `source` to `out`, every row `copies` times with identifiers of its own."""
    connection = duckdb.connect(config={"memory_limit": "2GB", "preserve_insertion_order": "false"})
    connection.execute("SET enable_progress_bar = false")
    for name in TABLES:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        rows = f"read_csv('{find_table(source, name)}', all_varchar=true)"
        columns = connection.sql(f"SELECT * FROM {rows} LIMIT 0").columns
        shifted = ", ".join(
            f"(rows.{column}::BIGINT + copy * {COPY_STEP})::VARCHAR AS {column}"
            for column in IDENTIFIERS
            if column in columns
        )
        suffix, compression = (".csv.gz", ", COMPRESSION gzip") if gzipped else (".csv", "")
        connection.execute(
            f"COPY (SELECT rows.* REPLACE ({shifted}) FROM {rows} AS rows, range({copies}) AS copies(copy)) "
            f"TO '{out / name}{suffix}' (HEADER{compression})"
        )


def prepare_tables(mimic_iv: Path, out: Path, profile_name: str, threads: int) -> None:
    """From raw tables to stays.parquet and ehr_hourly.parquet, as `dipro-fed prepare` does it."""
    profile, rejections = load_profile(profile_name), Rejections()
    (out / "scratch").mkdir(parents=True)
    with connect(out / "scratch", threads=threads) as connection:
        # The split takes no time worth measuring; here everyone trains.
        stays = read_stays(connection, mimic_iv, profile.rules.stays, rejections).assign(split="train")
        write_table(out, "stays", stays)
        prepare_ehr(connection, mimic_iv, stays, out, profile, rejections)


def count_rows(mimic_iv: Path, threads: int) -> None:
    """A bare count of the event tables."""
    connection = duckdb.connect(config={"threads": str(threads)})
    connection.execute("SET enable_progress_bar = false")
    for name in EVENTS:
        connection.sql(f"SELECT count(*) FROM read_csv('{find_table(mimic_iv, name)}', all_varchar=true)").fetchall()


def measured(function: Callable[..., None], *arguments: object) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak resident gigabytes of `function` in a new process, its imports included."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    start = time.perf_counter()
    process = context.Process(target=_report_usage, args=(results, function, arguments))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"{function.__name__} ended with exit status {process.exitcode}")
    wall_of_process = time.perf_counter() - start
    return results.get() | {"wall_with_start_s": round(wall_of_process, 2)}


def _report_usage(results, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    start = time.perf_counter()
    function(*arguments)
    wall = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime
    # Linux counts the peak in KiB.
    results.put({"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)})


def run_case(source: Path, scratch: Path, copies: int, gzipped: bool, repeats: int, threads: int) -> dict[str, object]:
    """All measurements of one input, best of `repeats` by wall time."""
    raw = scratch / "raw"
    inflate(source, raw, copies, gzipped=gzipped)
    case: dict[str, object] = {"input_bytes": sum(path.stat().st_size for path in raw.rglob("*.csv*"))}
    for name in ("corrected", "published"):
        runs = []
        for _ in range(repeats):
            runs.append(measured(prepare_tables, raw, scratch / "out", name, threads))
            shutil.rmtree(scratch / "out")
        case[name] = {
            "best": min(runs, key=lambda run: run["wall_s"]),
            "wall_s_of_all": [run["wall_s"] for run in runs],
        }
    case["bare_count"] = min(
        (measured(count_rows, raw, threads) for _ in range(repeats)), key=lambda run: run["wall_s"]
    )
    shutil.rmtree(raw)
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mimic-iv", type=Path, required=True, help="folder of hosp/ and icu/ tables to inflate")
    parser.add_argument("--scratch", type=Path, default=None, help="folder with some 4 GB free (default: the system's)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prepare_speed.json")
    arguments = parser.parse_args()
    results: dict[str, object] = {"threads": arguments.threads, "cores": os.cpu_count(), "duckdb": duckdb.__version__}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for name, copies, gzipped in CASES:
            case = run_case(arguments.mimic_iv, Path(scratch), copies, gzipped, arguments.repeats, arguments.threads)
            wall, memory = TARGETS[name]
            results[name] = case | {"target_wall_s": wall, "target_peak_gb": memory}
            print(name, json.dumps(case), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
