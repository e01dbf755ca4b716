"""Several processes that train one network, each on its share of every batch: what they add up, and who writes.

All of it does nothing in a training of one process. `torchrun` starts the processes and tells each its number by the
environment.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from sda.errors import SdaError


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class _Total(torch.autograd.Function):
    """The sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Within, the processes that torchrun started work together; the device of this one.

    Raises:
        SdaError: more processes on this machine than it has GPUs.
    """
    if not is_launched():
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise SdaError(f"process {local} finds only {torch.cuda.device_count()} GPUs on its machine: lower --nproc-per-node")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def leader_first() -> Iterator[None]:
    """What is within, process 0 does before the others: it may make files that they find then."""
    if rank() > 0:
        dist.barrier()
    yield
    if size() > 1 and rank() == 0:
        dist.barrier()


def total(x: Tensor) -> Tensor:
    """The sum over all processes, the same in each; gradients flow back to every process's part.

    A loss made of such sums is the loss of the whole batch, in every process. Its gradient, averaged over the processes as
    DistributedDataParallel does, is the gradient of that loss.
    """
    if size() == 1:
        return x
    if x.requires_grad:
        return _Total.apply(x)
    x = x.clone()
    dist.all_reduce(x)
    return x


def gathered(x: Tensor, dim: int) -> Tensor:
    """The tensors of all processes, of one shape, side by side; the same in each. Without gradients."""
    if size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim=dim)


def listed(things: list) -> list:
    """The things of all processes, in one list; the same in each."""
    if size() == 1:
        return things
    lists: list = [None] * size()
    dist.all_gather_object(lists, things)
    return [thing for part in lists for thing in part]


def largest(number: int) -> int:
    """The largest of one number of each process."""
    if size() == 1:
        return number
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value.item())
