"""The devices of a run."""

from typing import Any

import jax

from fedjax_sim import distributed
from fedjax_sim._validate import InputError
from fedjax_sim.experiment.config import Config


def devices_of(config: Config) -> list[Any]:
    """The devices to train on, as many of every process, and no more than there are clients for in a round.

    Raises:
      InputError: there are not as many as asked for.
    """
    asked, of_process = config.execution.devices, dict[int, list[Any]]()
    for device in jax.devices() if distributed.several() else jax.local_devices():
        of_process.setdefault(device.process_index, []).append(device)
    processes, each = len(of_process), min(map(len, of_process.values()))
    if asked != "auto" and asked % processes:
        raise InputError(f'execution.devices: {asked} on {processes} processes; give a multiple of them, or "auto"')
    if asked != "auto" and asked > each * processes:
        there = f"there are {each}{' in each process' if processes > 1 else ''}"
        raise InputError(f'execution.devices: {asked}, but {there}; give fewer, or "auto"')
    count = each if asked == "auto" else asked // processes
    useful = (config.training.clients_per_round or count * processes) // processes
    return [device for _, some in sorted(of_process.items()) for device in some[: min(count, max(1, useful))]]
