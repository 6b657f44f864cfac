"""pfl-research: its federated averaging of a PyTorch model on its simulated backend, in one process or two.

Pixels become float32 when a client's tensors are made. Two processes share each cohort as pfl documents it: started by
torchrun, with the clients' sizes given so that the load is even.
"""

import os
import sys

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

from benchmarks.peers.common import Stopwatch, Task, run
from benchmarks.peers.torch_loop import from_torch, get_parameters, make_model, set_parameters, shuffled, to_torch
from benchmarks.workloads import LEARNING_RATE


class Classifier(nn.Module):
    def __init__(self, task: Task):
        super().__init__()
        self.logits = make_model(task.workload)
        set_parameters(self.logits, to_torch(task.parameters))

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(pixels), labels)

    def metrics(self, pixels: Tensor, labels: Tensor) -> dict:
        return {}


class Lap(TrainingProcessCallback):
    """Stops every process when the first one's stopwatch says so."""

    def __init__(self, stopwatch: Stopwatch):
        self.stopwatch = stopwatch

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.stopwatch.lap(lambda model: from_torch(get_parameters(model.pytorch_model)), model)
        stop = torch.tensor(not self.stopwatch.running)
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(stop, 0)
        return bool(stop), Metrics()


def train(task: Task, stopwatch: Stopwatch) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)

    def make_dataset(client_id: int) -> PyTorchTensorDataset:
        return PyTorchTensorDataset(shuffled(task, client_id), user_id=str(client_id))

    # The sampler gives one client after the other, so that a round takes the next whole cohort.
    sampler = MinimizeReuseUserSampler(task.cohorts.reshape(-1).tolist())
    sizes = dict(enumerate(np.diff(task.federation.offsets).tolist()))
    classifier = Classifier(task)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=sys.maxsize,
            evaluation_frequency=sys.maxsize,
            train_cohort_size=task.workload.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(FederatedDataset(make_dataset, sampler, sizes), None, [WeightByDatapoints()]),
        model=PyTorchModel(classifier, torch.optim.SGD, torch.optim.SGD(classifier.parameters(), 1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=task.workload.batch_size
        ),
        callbacks=[Lap(stopwatch)],
        send_metrics_to_platform=False,
    )


def train_in_two(task: Task, stopwatch: Stopwatch) -> None:
    if "RANK" not in os.environ:  # start again, as two processes
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--local-ranks-filter=0"]
        os.execv(sys.executable, [sys.executable, *torchrun, "-m", "benchmarks.peers.pfl_peer", *sys.argv[1:]])
    train(task, stopwatch)


if __name__ == "__main__":
    run("pfl_peer", {"processes1": train, "processes2": train_in_two}, ("pfl", "torch", "numpy"))
