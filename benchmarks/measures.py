"""What the measures of every round cost: `python -m benchmarks.measures [--workloads logreg ...]`.

The same rounds compiled twice, with their metrics and without: what is not returned, XLA does not compute. Both run in
turn, and the ratio of each pair is what counts, for machines are noisy.
"""

import argparse
import time

import jax
import numpy as np
import optax

from benchmarks.throughput import choose_devices, prepare
from benchmarks.workloads import LEARNING_RATE, WORKLOADS, Workload
from fedjax_sim import Population, RoundState, fedavg, make_round, replicate, select

ROUNDS = 5  # in one call


def compare(workload: Workload, *, devices: list, seconds: float) -> tuple[float, list[float]]:
    """Median seconds of a round without metrics, and the ratios with over without, one for each pair of calls."""
    setup = prepare(workload, devices, rounds=ROUNDS)
    key = replicate(jax.random.key(0), devices)
    algorithm = fedavg(setup.model.loss_fn, client_tx=optax.sgd(LEARNING_RATE))
    round_fn = make_round(algorithm, batch_size=workload.batch_size, devices=devices)

    def program(measured: bool):
        @jax.jit
        def run(state: RoundState, population: Population, cohorts: jax.Array, key: jax.Array):
            def one(state: RoundState, ids: jax.Array):
                state, metrics = round_fn(state, select(population, ids), key)
                return state, metrics if measured else ()

            return jax.lax.scan(one, state, cohorts)

        return lambda: jax.block_until_ready(run(setup.state, setup.population, setup.cohorts, key))

    programs = program(False), program(True)
    for run in programs:
        run()
    plain, ratios, deadline = [], [], time.perf_counter() + seconds
    while len(ratios) < 5 or time.perf_counter() < deadline:
        took = []
        for run in programs if len(ratios) % 2 else programs[::-1]:
            start = time.perf_counter()
            run()
            took.append(time.perf_counter() - start)
        without, measured = took if len(ratios) % 2 else took[::-1]
        plain.append(without / ROUNDS)
        ratios.append(measured / without)
    return float(np.median(plain)), ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--seconds", type=float, default=20.0, help="to measure each workload for")
    parser.add_argument("--devices", type=int, help="by default one CPU device per core, or one GPU")
    args = parser.parse_args()
    devices = choose_devices(args.devices)
    print(f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}")
    print(f"{'workload':9}{'ms a round without':>20}{'with over without':>20}{'p25-p75':>16}")
    for name in args.workloads:
        plain, ratios = compare(WORKLOADS[name], devices=devices, seconds=args.seconds)
        low, high = np.percentile(ratios, [25, 75])
        print(f"{name:9}{1e3 * plain:20.1f}{np.median(ratios):20.3f}{f'{low:.3f}-{high:.3f}':>16}", flush=True)


if __name__ == "__main__":
    main()
