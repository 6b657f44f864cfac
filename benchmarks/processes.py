"""What several processes cost: `python -m benchmarks.processes [--processes 2] [--workloads logreg 2nn] [--calls 15]`.

The same rounds on one process with N devices and on N processes with one device each, on this machine. Both are kept at
work side by side and take turns, call by call, so that a machine with other work slows both; the median of the ratios
of neighbouring calls is what counts. Parameters after the same rounds are compared.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np

from benchmarks.throughput import make_program, prepare
from benchmarks.workloads import WORKLOADS, cohorts
from fedjax_sim import distributed, replicate, use_cpu_devices

ROUNDS = {"logreg": 40, "2nn": 4, "cnn": 1, "ragged": 20}  # of a call, which takes about a second


def work(name: str, address: str, processes: int, process: int, each: int) -> None:
    """Does a call for every line of standard input, and tells its seconds and the norm of the parameters."""
    if hasattr(os, "sched_setaffinity"):  # a share of the cores each, as a machine of its own would have them
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[process::processes] or cores)
    if processes > 1:
        distributed.initialize(address, processes, process)
    use_cpu_devices(each)
    devices, workload = jax.devices(), WORKLOADS[name]
    setup = prepare(workload, devices, rounds=1)
    key, drawn = replicate((jax.random.key(0), cohorts(workload, ROUNDS[name])), devices)
    program, state = make_program(workload, setup.model, devices, None), setup.state
    state = jax.block_until_ready(program(state, setup.population, drawn, key))
    tell({"ready": True})
    for _ in sys.stdin:
        began = time.perf_counter()
        state = jax.block_until_ready(program(state, setup.population, drawn, key))
        seconds = time.perf_counter() - began
        tell({"seconds": seconds, "norm": sum(float(np.sum(np.abs(leaf))) for leaf in jax.tree.leaves(state.params))})
    if processes > 1:
        distributed.finish()


def tell(found: dict[str, Any]) -> None:
    """A line for whoever has started this process; libraries may print others."""
    print(json.dumps(found), flush=True)


class Group:
    """Processes that do the same rounds together."""

    def __init__(self, opened: ExitStack, name: str, processes: int, each: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.members: list[subprocess.Popen[str]] = []
        for process in range(processes):
            given = [name, address, processes, process, each]
            command = [sys.executable, "-m", "benchmarks.processes", "--work", json.dumps(given)]
            pipe = subprocess.PIPE
            member = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            self.members.append(opened.enter_context(member))
        self.heard()

    def heard(self) -> list[dict[str, Any]]:
        """What each tells next."""
        found = []
        for member in self.members:
            assert member.stdout is not None
            line = next(line for line in member.stdout if line.startswith("{"))
            found.append(json.loads(line))
        return found

    def call(self) -> tuple[float, float]:
        """Seconds of a call, until the last is done, and the norm."""
        for member in self.members:
            assert member.stdin is not None
            member.stdin.write("\n")
            member.stdin.flush()
        found = self.heard()
        return max(each["seconds"] for each in found), found[0]["norm"]


def compare(name: str, processes: int, calls: int) -> dict[str, float]:
    """Seconds of a call on one process and on several, and the time of the latter over that of the former."""
    with ExitStack() as opened:
        groups = [Group(opened, name, 1, processes), Group(opened, name, processes, 1)]
        seconds: list[list[float]] = [[], []]
        apart = 0.0
        for number in range(calls):
            order = (0, 1) if number % 2 else (1, 0)
            found = {which: groups[which].call() for which in order}
            for which, (taken, _) in found.items():
                seconds[which].append(taken)
            apart = max(apart, abs(found[0][1] / found[1][1] - 1))
        for group in groups:
            for member in group.members:
                assert member.stdin is not None
                member.stdin.close()
    ratios = [several / one for one, several in zip(*seconds, strict=True)]
    return {
        "one_process_seconds": statistics.median(seconds[0]),
        "several_processes_seconds": statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "ratio_p10": float(np.percentile(ratios, 10)),
        "ratio_p90": float(np.percentile(ratios, 90)),
        "parameters_apart": apart,
    }


def main() -> None:
    """Prints a row for each workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["logreg", "2nn"], choices=list(WORKLOADS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(*json.loads(given.work))
    n = given.processes
    print(f"{'workload':10} {'1 x ' + str(n):>10} {str(n) + ' x 1':>10} {'ratio':>7}  p10 to p90   apart")
    for name in given.workloads:
        row = compare(name, n, given.calls)
        print(
            f"{name:10} {row['one_process_seconds']:9.3f}s {row['several_processes_seconds']:9.3f}s "
            f"{row['ratio']:7.3f}  {row['ratio_p10']:.2f} to {row['ratio_p90']:.2f}  {row['parameters_apart']:.1e}"
        )


if __name__ == "__main__":
    main()
