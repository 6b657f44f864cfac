"""All peers and this project side by side, one after another on the same machine: `python -m benchmarks.peers`."""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.environments import DEFAULT_FOLDER, interpreter, is_ready
from benchmarks.workloads import WORKLOADS

OURS = "fedjax_sim"
ROOT = Path(__file__).parents[2]
# Of accuracy after the warm-up rounds. The order of examples alone moves it by a few points, most of all that of cnn;
# without shuffling only the order of sums differs.
AGREEMENT, AGREEMENT_IN_ORDER = 0.03, 0.01

# name: (environment, settings, the best of which counts)
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "fedjax_peer": ("fedjax", ("jit",)),
    "flower_peer": ("flower", ("ray",)),
    "pfl_peer": ("pfl", ("processes1", "processes2")),
    "torch_loop": ("torch", ("threads1", "threads2")),
    "jax_loop": ("jax", ("client", "batch")),
}


def measure(command: list[str], limit_seconds: float) -> dict | str:
    """What the command printed as its last line of JSON, or one line saying why there is none."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    try:
        started = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
    except OSError as error:
        return str(error)
    try:
        stdout, stderr = started.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)  # its workers too
        started.communicate()
        return f"no result within {limit_seconds:.0f} s"
    lines = [line for line in stdout.splitlines() if line.startswith("{")]
    if started.returncode or not lines:
        said = [line.strip() for line in stderr.splitlines() if line.strip()]
        errors = [line for line in said if "Error" in line] or said
        return errors[-1][:200] if errors else f"exit status {started.returncode} and no result"
    return json.loads(lines[-1])


def contenders(args: argparse.Namespace, workload: str) -> list[tuple[str, str, list[str] | str]]:
    """(name, setting, command or why there is none) in the order of running: ours first and again last."""
    timed = ["--seconds", str(args.seconds)]
    ours = [args.ours_python, "-m", "benchmarks.throughput", "--workloads", workload, *timed, "--json", "-"]
    out: list[tuple[str, str, list[str] | str]] = []
    for peer in args.peers:
        environment, settings = PEERS[peer]
        for setting in settings:
            python = str(interpreter(args.folder.resolve(), environment))
            command = [python, "-m", f"benchmarks.peers.{peer}", "--workload", workload, "--setting", setting]
            ready = is_ready(args.folder, environment)
            missing = f"not installed: python -m benchmarks.peers.environments {environment}"
            command += [*timed, *(["--in-order"] if args.in_order else [])]
            out.append((peer, setting, command if ready else missing))
    return out if args.in_order else [(OURS, "first", ours), *out, (OURS, "last", ours)]


def run_workload(args: argparse.Namespace, workload: str) -> list[dict]:
    results = []
    for name, setting, command in contenders(args, workload):
        result = command if isinstance(command, str) else measure(command, args.limit)
        if isinstance(result, str):
            print(f"{workload} {name} {setting}: {result}", flush=True)
            continue
        if name == OURS:  # in the words of the peers
            result |= {"peer": OURS, "setting": setting, "accuracy": result["accuracy_after_5_rounds"]}
        result["rounds_per_second"] = 1 / statistics.median(result["round_seconds"])
        results.append(result)
        speed, accuracy = result["rounds_per_second"], result["accuracy"]
        print(f"{workload} {name} {setting}: {speed:.3g} rounds/s, accuracy {accuracy:.3f}", flush=True)
    accuracies = [result["accuracy"] for result in results]
    if accuracies and max(accuracies) - min(accuracies) > (AGREEMENT_IN_ORDER if args.in_order else AGREEMENT):
        print(f"{workload}: the accuracies DISAGREE: {min(accuracies):.3f} to {max(accuracies):.3f}", flush=True)
    return results


def best(results: list[dict], workload: str, name: str) -> float | None:
    """Rounds per second of the best setting; of ours, the mean of its two runs, which lie around the others in time."""
    speeds = [r["rounds_per_second"] for r in results if r["workload"] == workload and r["peer"] == name]
    return (statistics.mean(speeds) if name == OURS else max(speeds)) if speeds else None


def ratio(ours: float | None, peer: float | None) -> float | None:
    return ours / peer if ours and peer else None


def print_table(title: str, rows: dict[str, dict[str, float | None]], workloads: list[str]) -> None:
    print(f"\n| {title} | {' | '.join(workloads)} |\n| --- |{' ---: |' * len(workloads)}")
    for name, row in rows.items():
        cells = ("-" if row[workload] is None else f"{row[workload]:.3g}" for workload in workloads)
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20.0, help="timed for each contender (default: 20)")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds allowed to each contender (default: 900)")
    parser.add_argument("--in-order", action="store_true", help="check accuracies: the peers alone, without shuffling")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="of the environments (default: .peers)")
    parser.add_argument("--ours-python", default=sys.executable, help="the interpreter for this project")
    parser.add_argument("--output", type=Path, help="a JSON file for all results")
    args = parser.parse_args()

    results = [result for workload in args.workloads for result in run_workload(args, workload)]
    names = [*([] if args.in_order else [OURS]), *args.peers]
    speeds = {name: {w: best(results, w, name) for w in args.workloads} for name in names}
    ratios = {name: {w: ratio(best(results, w, OURS), speeds[name][w]) for w in args.workloads} for name in args.peers}
    print_table("rounds per second", speeds, args.workloads)
    if not args.in_order:
        print_table(f"{OURS} / peer", ratios, args.workloads)
    if args.output:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        report = {"machine": machine, "rounds_per_second": speeds, "ratios": ratios, "results": results}
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    if not results:
        raise SystemExit("no contender gave a result")


if __name__ == "__main__":
    main()
