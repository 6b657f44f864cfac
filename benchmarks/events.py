"""What the event queue of an asynchronous federation costs: `python -m benchmarks.events [--clients 100000]`.

FedBuff (100 messages a server step) and FedAsync (one) over clients whose links and devices are log-normal, everybody
there or each awake for 30% of the day. An event is a message that arrives, with the choice of the client that takes its
place. Medians of three repeats of at least a second each, in one schedule that has been warmed up.

Each event stands for one client's training, whose time is that of the fastest workload measured: logistic regression,
77.6 rounds of 100 clients a second on 2 cores. The last column compares the two.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from fedjax_sim import network as net

TRAINING_SECONDS = 1 / (77.6 * 100)
BITS, STEPS = 32 * 7_850, 10  # of logistic regression on 28 x 28 pixels, each way; ten local steps
SHARE = 0.3  # of the day
FEDERATIONS = (("FedBuff", 100, 1_000), ("FedBuff", 100, 10_000), ("FedAsync", 1, 1_000), ("FedAsync", 1, 10_000))
REPEATS, BLOCK = 3, 100  # events between two looks at the clock


def timed(schedule: Iterator[net.ServerStep], buffer: int, seconds: float) -> tuple[float, float, float]:
    """Events, server steps and simulated hours in a second of wall time."""
    events, server, first, last = 0, 0, -1.0, 0.0
    start = time.perf_counter()
    while (wall := time.perf_counter() - start) < seconds or not server:
        for step in islice(schedule, max(BLOCK // buffer, 1)):
            first = step.seconds if first < 0 else first
            last = step.seconds
            events += len(step.arrived) + len(step.dropped)
            server += 1
    return events / wall, server / wall, (last - first) / 3600 / wall


def measure(
    profiles: net.Profiles, buffer: int, concurrency: int, availability: net.Availability | None, seconds: float
) -> np.ndarray:
    """The medians of `timed`, once every place has changed hands twice."""
    schedule = net.asynchronous(
        profiles,
        seed=0,
        concurrency=concurrency,
        buffer=buffer,
        steps=STEPS,
        downlink_bits=BITS,
        uplink_bits=BITS,
        availability=availability,
    )
    for _ in islice(schedule, max(2 * concurrency // buffer, 1)):
        pass
    return np.median([timed(schedule, buffer, seconds) for _ in range(REPEATS)], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100_000, help="of the population")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing, for each repeat")
    args = parser.parse_args()
    profiles = net.lognormal(args.clients, 0)
    print(f"{args.clients:,} clients; training one takes {TRAINING_SECONDS * 1e6:.0f} us\n")
    print("| algorithm | buffer | concurrency | clients are | events/s | us/event | server steps/s | simulated hours/s "
          "| event over training |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, buffer, concurrency in FEDERATIONS:
        for presence, there in (("always there", None), ("diurnal", net.diurnal(SHARE, 1))):
            events, server, hours = measure(profiles, buffer, concurrency, there, args.seconds)
            print(f"| {name} | {buffer} | {concurrency:,} | {presence} | {events:,.0f} | {1e6 / events:.1f} "
                  f"| {server:,.0f} | {hours:.3g} | {100 / events / TRAINING_SECONDS:.1f}% |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
