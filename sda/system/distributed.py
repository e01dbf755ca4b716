"""Communication between processes that train one network, each on its share of every batch.

`torchrun` starts the processes and tells each one its rank through environment variables. In a single process, every function
here returns its input or does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from sda.errors import SdaError


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_torchrun() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class _Total(torch.autograd.Function):
    """Sum over all processes; the gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the process group that torchrun started, and yield the device of this process.

    Raises:
        SdaError: there are more processes on this machine than GPUs.
    """
    if not is_torchrun():
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise SdaError(f"process {local} finds only {torch.cuda.device_count()} GPUs on this machine; lower --nproc-per-node")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def main_process_first() -> Iterator[None]:
    """Let process 0 run the body first, so that the other processes find the files that it creates."""
    if rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


def all_reduce_sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over all processes, the same in each; gradients flow back to every process.

    A loss computed from such sums is the loss of the whole batch in every process. Its gradient, averaged over the processes as
    DistributedDataParallel does, is the gradient of that loss.
    """
    if world_size() == 1:
        return x
    if x.requires_grad:
        return _Total.apply(x)
    x = x.clone()
    dist.all_reduce(x)
    return x


def all_gather(x: Tensor, dim: int) -> Tensor:
    """Concatenate the tensors of all processes, which have the same shape, along `dim`; without gradients."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=dim)


def all_gather_objects(items: list) -> list:
    """Concatenate the lists of all processes in order of rank."""
    if world_size() == 1:
        return items
    lists: list = [None] * world_size()
    dist.all_gather_object(lists, items)
    return [item for part in lists for item in part]


def all_reduce_max(number: int) -> int:
    """Return the maximum of `number` over all processes."""
    if world_size() == 1:
        return number
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value.item())
