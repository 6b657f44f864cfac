"""What every peer shares: the task, the warm-up, the stopwatch, the accuracy and the line printed. NumPy alone."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from benchmarks.workloads import WORKLOADS, Federation, Workload, cohorts, initial_parameters, load

WARM_UP_ROUNDS, LEAST_TIMED_ROUNDS, COHORTS = 5, 2, 256

Parameters = list[tuple[np.ndarray, np.ndarray]]  # (weight, bias) of each layer, as workloads.layers gives them


class Task(NamedTuple):
    """One workload with its data, its cohorts (int32[COHORTS, cohort], taken in turn) and its initial parameters."""

    workload: Workload
    federation: Federation
    cohorts: np.ndarray
    parameters: Parameters
    seed: int
    in_order: bool = False  # the stored order for every epoch, which makes the accuracies of all peers comparable

    def order(self, size: int, permutation: Callable[[int], Any]) -> Any:
        """The order of one epoch over `size` examples: `permutation(size)`, unless it is the stored one."""
        return np.arange(size) if self.in_order else permutation(size)

    def client(self, client_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (uint8[n, 784]) and labels (int32[n]) of one client."""
        start, stop = self.federation.offsets[client_id : client_id + 2]
        return self.federation.images[start:stop], self.federation.labels[start:stop]


def make_task(name: str, seed: int, in_order: bool) -> Task:
    workload = WORKLOADS[name]
    parameters = initial_parameters(workload, seed)
    return Task(workload, load(workload, seed), cohorts(workload, COHORTS, seed), parameters, seed, in_order)


def _pooled_convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    size = weight.shape[0]
    x = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    n, height, width = windows.shape[:3]
    y = np.maximum(windows.reshape(n * height * width, -1) @ weight.reshape(-1, weight.shape[-1]) + bias, 0)
    return y.reshape(n, height // 2, 2, width // 2, 2, -1).max((2, 4))


def accuracy(task: Task, parameters: Parameters, block: int = 250) -> float:
    """Share of the test images that the parameters classify rightly: one definition for all peers."""
    right = 0
    for start in range(0, len(task.federation.test_labels), block):
        x = task.federation.test_images[start : start + block].astype(np.float32) / 255
        for i, (weight, bias) in enumerate(parameters):
            if weight.ndim == 4:
                x = _pooled_convolution(x.reshape(len(x), 28, 28, 1) if i == 0 else x, weight, bias)
                continue
            x = x.reshape(len(x), -1) @ weight + bias
            x = np.maximum(x, 0) if i + 1 < len(parameters) else x
        right += int((x.argmax(-1) == task.federation.test_labels[start : start + block]).sum())
    return right / len(task.federation.test_labels)


class Stopwatch:
    """Counts rounds: five to warm up, which also give the accuracy, then timed ones until the seconds are spent."""

    def __init__(self, task: Task, seconds: float):
        self.task, self.seconds = task, seconds
        self.finished = 0
        self.round_seconds: list[float] = []
        self.accuracy = self.start_seconds = float("nan")
        self.last = time.perf_counter()

    @property
    def cohort(self) -> np.ndarray:
        """Client ids of the round to run now."""
        return self.task.cohorts[self.finished % COHORTS]

    @property
    def running(self) -> bool:
        """Whether another round is wanted."""
        return len(self.round_seconds) < LEAST_TIMED_ROUNDS or sum(self.round_seconds) < self.seconds

    def lap(self, convert: Callable[[Any], Parameters], state: Any) -> None:
        """To be called when a round is complete; asks for its parameters, `convert(state)`, after the warm-up alone."""
        elapsed = time.perf_counter() - self.last
        self.finished += 1
        if self.finished == 1:
            self.start_seconds = elapsed
        if self.finished > WARM_UP_ROUNDS:
            self.round_seconds.append(elapsed)
        elif self.finished == WARM_UP_ROUNDS:
            self.accuracy = accuracy(self.task, convert(state))
        self.last = time.perf_counter()

    def report(self, peer: str, setting: str, packages: Sequence[str]) -> str:
        return json.dumps(
            {
                "peer": peer,
                "setting": setting,
                "workload": self.task.workload.name,
                "rounds_timed": len(self.round_seconds),
                "round_seconds": [round(s, 6) for s in self.round_seconds],
                "compile_or_start_seconds": round(self.start_seconds, 3),
                "accuracy": self.accuracy,
                "versions": {package: version(package) for package in packages},
            }
        )


def run(peer: str, settings: dict[str, Callable[[Task, Stopwatch], None]], packages: Sequence[str]) -> None:
    """The command line of a peer: run one setting on one workload and print one line of JSON.

    A setting is called with the task and a stopwatch. It goes on while `stopwatch.running`, trains `stopwatch.cohort`,
    and calls `stopwatch.lap` after each round.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.peers.{peer}")
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--setting", choices=settings, default=next(iter(settings)))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--in-order", action="store_true", help="do not shuffle, to compare accuracies closely")
    args = parser.parse_args()
    task = make_task(args.workload, args.seed, args.in_order)
    stopwatch = Stopwatch(task, args.seconds)
    settings[args.setting](task, stopwatch)
    print(stopwatch.report(peer, args.setting, packages), flush=True)
