"""Where the computation happens: device, precision, compilation and processes.

The only file that imports accelerate. Under `torchrun` each process holds a full copy of the model
and a share of every batch; gradients are summed once per optimiser step, after accumulation. That
one explicit sum (instead of a wrapper around each module) keeps tasks with several networks and
optimisers correct, and makes the result independent of how a batch is shared out.
"""

import contextlib
import hashlib
import os
import platform
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from finesight.models.dropout import quicken
from finesight.models.layout import memory_format

Precision = Literal["auto", "bf16", "fp32"]


class Engine:
    """One process of a run.

    `precision="auto"` is bf16 autocast where the hardware multiplies bf16 natively (GPU with bf16,
    CPU with AMX or AVX512-BF16), else float32. Parameters and losses stay float32 in either case.
    """

    def __init__(self, precision: Precision = "auto", compile: bool = False) -> None:
        from accelerate import PartialState

        cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
        # Generous: the first process may build a cache for hours while the others wait at the barrier.
        self._state = PartialState(cpu=cpu, timeout=timedelta(hours=24))
        self.device: torch.device = self._state.device
        self.rank: int = self._state.process_index
        self.world: int = self._state.num_processes
        self.bf16 = precision == "bf16" or (precision == "auto" and has_native_bf16(self.device))
        self._compile = compile

    @property
    def main(self) -> bool:
        """True in the one process that writes files and prints."""
        return self.rank == 0

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "fp32"

    def place(self, module: nn.Module) -> nn.Module:
        """Move to the device, 4-D weights in `memory_format`; dropout that a CPU is fast at; compile when asked."""
        module.to(self.device, memory_format=memory_format(module))  # type: ignore[call-overload]
        if self.device.type == "cpu":
            quicken(module)
        if self._compile:
            module.compile()
        return module

    def send(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with its tensors on the device."""
        return {
            key: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def seed(self, *key: int) -> None:
        """Seed dropout and every other draw on this process from `key`, e.g. (seed, step)."""
        digest = hashlib.blake2b(np.array([*key, self.rank], dtype=np.int64).tobytes(), digest_size=8).digest()
        number = int.from_bytes(digest, "little") >> 1
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(number)  # a tenth of the time of torch.manual_seed
        else:
            torch.manual_seed(number)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all processes; a parameter unused in one process counts as zero there."""
        if self.world == 1:
            return
        tensors = [parameter for parameter in parameters if parameter.requires_grad]
        used = torch.tensor([float(p.grad is not None) for p in tensors], device=self.device)
        torch.distributed.all_reduce(used)
        tensors = [parameter for parameter, count in zip(tensors, used.tolist(), strict=True) if count]
        for parameter in tensors:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in tensors if parameter.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            torch.distributed.all_reduce(flat)
            pieces = flat.split([gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view(gradient.shape))

    def sum_values(self, values: list[float]) -> list[float]:
        """Element-wise float64 sum over processes."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """True when the flag is set in any process."""
        return flag if self.world == 1 else self.sum_values([float(flag)])[0] > 0

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all processes, joined in rank order, in every process."""
        if self.world == 1:
            return items
        parts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def share_buffers(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the buffers (batch-norm statistics) of the first."""
        if self.world > 1:
            for module in modules:
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)

    def share_parameters(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the parameters of the first, so that all start from the same weights."""
        if self.world > 1:
            for module in modules:
                for parameter in module.parameters():
                    torch.distributed.broadcast(parameter.data, src=0)

    def wait(self) -> None:
        self._state.wait_for_everyone()

    def first_alone(self) -> contextlib.AbstractContextManager[Any]:
        """The main process runs the block before the others do (to build a cache once)."""
        return self._state.main_process_first()

    def close(self) -> None:
        """Leave the process group; the engine cannot be used afterwards."""
        if self.world > 1:
            self._state.destroy_process_group()


def has_native_bf16(device: torch.device) -> bool:
    """True when the hardware multiplies bfloat16 without emulation."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return _cpu_flag("_is_amx_tile_supported") or _cpu_flag("_is_avx512_bf16_supported")
    return False


def hardware() -> dict[str, Any]:
    """What the run ran on, for run.json."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "native_bf16": has_native_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
    }


def is_out_of_memory(error: BaseException) -> bool:
    """True for the out-of-memory errors of CUDA, MPS and the CPU allocator."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def _buckets(gradients: list[Tensor], size: int = 1 << 23) -> Iterator[list[Tensor]]:
    """Groups of at most `size` elements, so that the flat copy stays small."""
    bucket: list[Tensor] = []
    held = 0
    for gradient in gradients:
        if bucket and held + gradient.numel() > size:
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.numel()
    if bucket:
        yield bucket


def _cpu_flag(name: str) -> bool:
    """A probe of torch.cpu, which older releases lack."""
    probe = getattr(torch.cpu, name, None)
    return bool(probe and probe())


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
