"""FedAvg as a plain PyTorch loop over clients and batches, and the model that the peers built on PyTorch share."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peers.common import Parameters, Stopwatch, Task, run
from benchmarks.workloads import LEARNING_RATE, Workload, layers


def make_model(workload: Workload) -> nn.Module:
    """Takes pixels as float32[n, 784] in [0, 1] and gives logits."""
    modules: list[nn.Module] = [nn.Unflatten(1, (1, 28, 28))] if workload.model == "cnn" else []
    shapes = layers(workload)
    for shape, after in pairwise([*shapes, ()]):
        if len(shape) == 4:
            modules += [nn.Conv2d(shape[2], shape[3], shape[0], padding="same"), nn.ReLU(), nn.MaxPool2d(2)]
            modules += [nn.Flatten()] if len(after) == 2 else []
        else:
            modules += [nn.Linear(*shape)] + ([nn.ReLU()] if after else [])
    model = nn.Sequential(*modules)
    # The faster layout of convolutions on a CPU.
    return model.to(memory_format=torch.channels_last) if workload.model == "cnn" else model


def to_torch(parameters: Parameters) -> list[np.ndarray]:
    """The arrays in the order and layout of `make_model(...).parameters()`: channels come first in PyTorch."""
    arrays, channels = [], 0
    for weight, bias in parameters:
        if weight.ndim == 4:
            channels = weight.shape[-1]
            weight = weight.transpose(3, 2, 0, 1)
        else:
            if channels:
                side = int(np.sqrt(len(weight) // channels))
                weight = weight.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(weight.shape)
            weight, channels = weight.T, 0
        arrays += [np.ascontiguousarray(weight), bias.copy()]
    return arrays


def from_torch(arrays: list[np.ndarray]) -> Parameters:
    """The inverse of `to_torch`."""
    parameters, channels = [], 0
    for weight, bias in zip(arrays[::2], arrays[1::2], strict=True):
        if weight.ndim == 4:
            channels = len(weight)
            weight = weight.transpose(2, 3, 1, 0)
        else:
            weight = weight.T
            if channels:
                side = int(np.sqrt(len(weight) // channels))
                weight = weight.reshape(channels, side, side, -1).transpose(1, 2, 0, 3).reshape(weight.shape)
            channels = 0
        parameters.append((np.ascontiguousarray(weight), bias))
    return parameters


@torch.no_grad()
def set_parameters(model: nn.Module, arrays: list[np.ndarray]) -> None:
    for parameter, array in zip(model.parameters(), arrays, strict=True):
        parameter.copy_(torch.from_numpy(np.asarray(array)))


def get_parameters(model: nn.Module) -> list[np.ndarray]:
    return [np.array(parameter.detach().numpy(), order="C") for parameter in model.parameters()]


def shuffled(task: Task, client_id: int) -> tuple[Tensor, Tensor]:
    """Pixels (float32 in [0, 1]) and labels (int64) of one client, in a new order."""
    images, labels = task.client(client_id)
    order = torch.as_tensor(task.order(len(labels), torch.randperm))
    return torch.from_numpy(images)[order].float().div_(255), torch.from_numpy(labels)[order].long()


def train(model: nn.Module, pixels: Tensor, labels: Tensor, batch_size: int) -> None:
    """One epoch of plain SGD in the given order; the loss of each batch is its mean, of the last one too."""
    parameters = list(model.parameters())
    for x, y in zip(pixels.split(batch_size), labels.split(batch_size), strict=True):
        loss = nn.functional.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():  # faster than torch.optim.SGD for small models
            torch._foreach_add_(parameters, gradients, alpha=-LEARNING_RATE)


def loop(task: Task, stopwatch: Stopwatch, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(task.seed)
    model = make_model(task.workload)
    center = [torch.from_numpy(array) for array in to_torch(task.parameters)]
    sizes = np.diff(task.federation.offsets)
    while stopwatch.running:
        total, examples = [torch.zeros_like(array) for array in center], int(sizes[stopwatch.cohort].sum())
        for client_id in stopwatch.cohort:
            with torch.no_grad():
                torch._foreach_copy_(list(model.parameters()), center)
            train(model, *shuffled(task, client_id), task.workload.batch_size)
            with torch.no_grad():
                torch._foreach_add_(total, list(model.parameters()), alpha=int(sizes[client_id]) / examples)
        center = total
        stopwatch.lap(from_torch, [array.numpy() for array in center])


SETTINGS = {f"threads{n}": lambda task, stopwatch, n=n: loop(task, stopwatch, n) for n in (1, 2)}

if __name__ == "__main__":
    run("torch_loop", SETTINGS, ("torch", "numpy"))
