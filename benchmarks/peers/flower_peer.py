"""Flower: its federated averaging on its simulation engine, one Ray worker per core, each with one PyTorch thread.

The engine gets as many nodes as a cohort has clients and each message names the client to train, which spares it the
search through the whole population for messages. The loop is that of `Strategy.start` without its evaluation.
"""

import logging
import os
from functools import cache

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import sample_nodes
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.peers import torch_loop
from benchmarks.peers.common import Stopwatch, Task, make_task, run
from benchmarks.peers.torch_loop import from_torch, get_parameters, set_parameters, shuffled, to_torch

client_app = ClientApp()


@cache
def worker_state(name: str, seed: int, in_order: bool) -> tuple[Task, nn.Module]:
    """Made once in each worker."""
    torch.set_num_threads(1)
    task = make_task(name, seed, in_order)
    return task, torch_loop.make_model(task.workload)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    task, model = worker_state(config["workload"], config["seed"], config["in-order"])
    set_parameters(model, message.content["arrays"].to_numpy_ndarrays())
    pixels, labels = shuffled(task, config["client"])
    torch_loop.train(model, pixels, labels, task.workload.batch_size)
    metrics = MetricRecord({"num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(get_parameters(model)), "metrics": metrics})
    return Message(content, reply_to=message)


class NamedCohorts(FedAvg):
    """FedAvg whose messages name the clients of a given cohort."""

    def __init__(self, task: Task, stopwatch: Stopwatch):
        super().__init__(fraction_evaluate=0.0)
        self.task, self.stopwatch = task, stopwatch

    def configure_train(self, server_round, arrays, config, grid):
        cohort = self.stopwatch.cohort
        nodes, _ = sample_nodes(grid, len(cohort), len(cohort))
        for client_id, node in zip(cohort, nodes, strict=True):
            config = {
                "workload": self.task.workload.name,
                "seed": self.task.seed,
                "in-order": self.task.in_order,
                "client": int(client_id),
            }
            content = RecordDict({"arrays": arrays, "config": ConfigRecord(config)})
            yield Message(content, node, MessageType.TRAIN)


def simulate(task: Task, stopwatch: Stopwatch) -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = NamedCohorts(task, stopwatch)
        arrays = ArrayRecord(to_torch(task.parameters))
        grid.pull_interval = 0.01  # seconds between looks for replies; 0.1 would add to every round
        while stopwatch.running:
            messages = strategy.configure_train(stopwatch.finished, arrays, ConfigRecord(), grid)
            arrays, _ = strategy.aggregate_train(stopwatch.finished, grid.send_and_receive(messages))
            stopwatch.lap(lambda arrays: from_torch(arrays.to_numpy_ndarrays()), arrays)

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": os.cpu_count(), "log_to_driver": False, "logging_level": logging.ERROR},
    }
    run_simulation(server_app, client_app, task.workload.cohort, backend_config=backend)


if __name__ == "__main__":
    # Ray's workers find the functions by the module's name, which is not that of the script.
    from benchmarks.peers.flower_peer import simulate as simulate_by_name

    run("flower_peer", {"ray": simulate_by_name}, ("flwr", "ray", "torch", "numpy"))
