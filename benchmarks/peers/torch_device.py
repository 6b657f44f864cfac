"""FedAvg in PyTorch with the data on the device: a loop over clients and batches, and all clients at once by vmap."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.peers.torch_loop import make_model, to_torch, train
from benchmarks.peers.vmapped import padded
from benchmarks.workloads import LEARNING_RATE, Workload, client_sizes, cohorts, initial_parameters, load


def _where(device: Any) -> str:
    """PyTorch's device for one of JAX's."""
    return "cuda" if device.platform == "gpu" else "cpu"


def _finished(where: str, result: Any) -> Any:
    if where == "cuda":
        torch.cuda.synchronize()
    return result


def loop(workload: Workload, device: Any, rounds: int) -> Callable[[], Any]:
    where, data, sizes = _where(device), load(workload), client_sizes(workload)
    images = torch.from_numpy(np.array(data.images)).to(where)
    labels = torch.from_numpy(np.array(data.labels)).long().to(where)
    model = make_model(workload).to(where)
    start = [torch.from_numpy(array).to(where) for array in to_torch(initial_parameters(workload))]
    parameters, drawn = list(model.parameters()), cohorts(workload, rounds)

    def call() -> list[torch.Tensor]:
        center = start
        for ids in drawn:
            total, examples = [torch.zeros_like(array) for array in center], int(sizes[ids].sum())
            for client in ids:
                with torch.no_grad():
                    torch._foreach_copy_(parameters, center)
                rows = int(data.offsets[client]) + torch.randperm(int(sizes[client]), device=where)
                train(model, images[rows].float().div_(255), labels[rows], workload.batch_size)
                with torch.no_grad():
                    torch._foreach_add_(total, parameters, alpha=int(sizes[client]) / examples)
            center = total
        return _finished(where, center)

    return call


def vmapped(workload: Workload, device: Any, rounds: int) -> Callable[[], Any]:
    where, data = _where(device), padded(workload, rounds)
    images, labels, rows, real, shares = (
        torch.from_numpy(np.array(a)).to(where) for a in (data.images, data.labels.astype(np.int64), *data[2:])
    )
    model = make_model(workload).to(where).to(memory_format=torch.contiguous_format)
    names = [name for name, _ in model.named_parameters()]
    start = [torch.from_numpy(array).to(where) for array in to_torch(initial_parameters(workload))]

    def loss(params: dict[str, torch.Tensor], pixels: torch.Tensor, label: torch.Tensor, real: torch.Tensor) -> Any:
        each = cross_entropy(torch.func.functional_call(model, params, (pixels,)), label, reduction="none")
        return torch.where(real, each, 0.0).sum() / real.sum().clamp(min=1)

    gradients = torch.func.vmap(torch.func.grad(loss))

    @torch.no_grad()
    def call() -> list[torch.Tensor]:
        center = dict(zip(names, start, strict=True))
        for of_round in range(rounds):
            params = {name: leaf.expand(workload.cohort, *leaf.shape).clone() for name, leaf in center.items()}
            for step in range(rows.shape[2]):
                chosen = rows[of_round, :, step].long()
                found = gradients(params, images[chosen].float().div_(255), labels[chosen], real[of_round, :, step])
                for name, leaf in params.items():
                    leaf.sub_(found[name], alpha=LEARNING_RATE)
            center = {name: torch.tensordot(shares[of_round], leaf, 1) for name, leaf in params.items()}
        return _finished(where, list(center.values()))

    return call
