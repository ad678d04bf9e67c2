"""What the benchmarks share: a measurement in a process of its own, the conditions it was made under, and tables."""

import json
import multiprocessing
import os
import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"

Repeated = TypeVar("Repeated")


def in_new_process(function: Callable[..., dict[str, Any]], *arguments: object, threads: int) -> dict[str, Any]:
    """What `function` returns, with the peak resident gigabytes of the new process that ran it, imports included.

    The process is the first that the system ends where memory runs out; the result then says `killed`.
    """
    # Read by OpenMP when the new process loads it.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Else threads that wait for one another count as work, the more so the busier the machine.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode != -9:
            raise SystemExit(f"{function.__name__} ended with exit status {process.exitcode}") from None
        return {"killed": True}
    finally:
        process.join()


def _run(sender, function: Callable[..., dict[str, Any]], arguments: tuple[object, ...]) -> None:
    Path("/proc/self/oom_score_adj").write_text("1000")
    result = function(*arguments)
    # Linux counts the peak in KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sender.send(result | {"peak_gb": round(peak, 2)})


def interleaved(cases: Sequence[str], repeats: int, run: Callable[[str], Repeated]) -> dict[str, list[Repeated]]:
    """Every case `repeats` times in turn, A B C A B C, so that a busy machine slows all of them alike."""
    results: dict[str, list[Repeated]] = {case: [] for case in cases}
    for _ in range(repeats):
        for case in cases:
            results[case].append(run(case))
    return results


def conditions(threads: int) -> dict[str, Any]:
    """Machine and software of a measurement, and how busy the machine was with other work when it began."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def _processor() -> str:
    """Model of the processor, and what it knows of bfloat16."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(known)})"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown, with columns as wide as what is in them."""
    lines = [[str(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    print(f"\n{title}\n")
    for place, line in enumerate(lines):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if place == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|", flush=True)


def write_results(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON a person can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
