"""All that matters of one accelerator, within a budget of time: `python -m benchmarks.accelerator [--json FILE]`.

Sections, the most important first; what does not fit into the budget is left out, and said so:

  ceilings   bandwidth of copies, matrix products by precision, an iteration of a loop, a call
  workloads  the four of `benchmarks.throughput`, with the compiler options of `core.compile` and without
  large      the convolutional network with 1,000 clients a round
  peers      the same work in a hand-written vmap, and in PyTorch as a loop and with vmap where PyTorch is installed
  gaps       what of the time between rounds the device is idle: from a profiler trace on a GPU, else from timings
  rows       1 to 32 runs as one program, `core.many`
  equal      how far the model after five rounds is from the CPU's, by precision of products
  lanes      clients at once, from one to all

Shares are of the product's rate at default precision, and of the copy's bandwidth by the least that must be moved,
clients' parameters read and written once a step: over 1 where they stay in a cache.

Each measurement is one JSON line in FILE as soon as it is made, and a table follows at the end. Needs jax, optax, flax
and NumPy alone, and no network. On a CPU everything is smaller, to try it out.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch wants memory of the same device

import jax

from benchmarks import on_device
from benchmarks.on_device import Setting
from benchmarks.throughput import context
from benchmarks.workloads import WORKLOADS

Row = dict[str, Any]
SECTIONS: dict[str, Callable[[Setting], Iterator[tuple[str, Callable[[], Row]]]]] = {
    "ceilings": on_device.ceilings,
    "workloads": on_device.workloads,
    "large": on_device.large,
    "peers": on_device.peers,
    "gaps": on_device.gaps,
    "rows": on_device.rows,
    "equal": on_device.equal,
    "lanes": on_device.lanes,
}
LEAST_SECONDS = 10.0  # a measurement is not begun with less left than this, or than the longest one so far took


def measure(setting: Setting, sections: list[str], deadline: float, say: Callable[[Row], None]) -> None:
    """Makes the measurements of these sections until `deadline`, a time of `time.monotonic`. One that fails is said to
    have failed, and costs no other."""
    longest = LEAST_SECONDS
    for section in sections:
        for name, made in SECTIONS[section](setting):
            row, began = {"section": section, "name": name}, time.monotonic()
            if deadline - began < longest:
                say(row | {"skipped": f"{max(deadline - began, 0):.0f} s left"})
                continue
            try:
                row |= made()
            except (RuntimeError, ValueError, TypeError, MemoryError, ImportError) as error:  # JAX's and PyTorch's, too
                row |= {"failed": f"{type(error).__name__}: {str(error)[:400]}"}
            took = time.monotonic() - began
            longest = max(longest, took)
            say(row | {"seconds": round(took, 2)})


def shown(row: Row) -> str:
    """One line of the table."""
    left = [name for name in row if name not in ("section", "name", "seconds")]
    values = (f"{name} {row[name]:.4g}" if isinstance(row[name], float) else f"{name} {row[name]}" for name in left)
    return f"{row['section']:10}{row['name']:44}{', '.join(values)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--budget", type=float, default=460.0, help="seconds in all")
    parser.add_argument("--seconds", type=float, default=2.0, help="to repeat each measurement for, at most")
    parser.add_argument("--tiny", action="store_true", help="a few clients and small matrices")
    parser.add_argument("--json", default="accelerator.jsonl", help="a file, of one JSON object a line")
    args = parser.parse_args()
    deadline = time.monotonic() + args.budget
    device, rows = jax.devices()[0], []
    file = Path(args.json)

    def say(row: Row) -> None:
        rows.append(row)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(row) + "\n")
        print(shown(row), flush=True)

    about = context([device])
    file.write_text("", encoding="utf-8")
    say({"section": "about", "name": about["device"], "platform": device.platform, "jax": jax.__version__}
        | {name: about[name] for name in ("processor", "python", "commit")})  # fmt: skip
    setting = Setting(device, tuple(args.workloads), args.seconds, args.tiny)
    measure(setting, args.only, deadline, say)
    print(f"\n{'workload':9}{'options':9}{'rounds/s':>10}{'of peak':>9}{'of bandwidth':>14}{'compile s':>11}")
    for row in rows:
        if row["section"] == "workloads" and "rounds_per_second" in row:
            shares = (row.get("share_of_peak", float("nan")), row.get("share_of_bandwidth", float("nan")))
            print(f"{row['workload']:9}{row['options']:9}{row['rounds_per_second']:10.2f}{shares[0]:9.3f}"
                  f"{shares[1]:14.3f}{row['compile_seconds']:11.1f}")  # fmt: skip
    skipped = sum("skipped" in row for row in rows)
    failed = sum("failed" in row for row in rows)
    print(f"{len(rows)} rows in {file}; {skipped} left out for want of time, {failed} failed")


if __name__ == "__main__":
    main()
