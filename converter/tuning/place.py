"""Where training runs: on which device, as one of how many processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from converter.errors import ConverterError, first_line


@dataclass(frozen=True)
class Place:
    """Where training runs.

    Attributes:
        rank: Number of this process.
        processes: How many there are.
        device: Of this process.
        mean: Averages a tensor over all of them.
    """

    rank: int
    processes: int
    device: torch.device
    mean: Callable[[torch.Tensor], torch.Tensor]

    def together(self, number: float) -> float:
        """Average a number over all processes."""
        if self.processes == 1:
            return float(number)
        value = torch.tensor(float(number), dtype=torch.float64, device=self.device)
        return float(self.mean(value))

    def agrees(self, number: float) -> bool:
        """Tell whether all processes have the same number."""
        first, second = self.together(number), self.together(number**2)
        return abs(second - first**2) < 0.5 and round(first) == number

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Average tensors over all processes, in place and in one message."""
        if self.processes == 1 or not tensors:
            return
        together = self.mean(torch.cat([tensor.reshape(-1) for tensor in tensors]))
        for tensor, mean in zip(tensors, together.split([t.numel() for t in tensors])):
            tensor.copy_(mean.view(tensor.shape))

    def computes_bfloat16(self) -> bool:
        """Tell whether the device has instructions for bfloat16; elsewhere it is emulated."""
        if self.device.type == "cpu":
            there = torch.backends.mkldnn.is_available()
            return bool(there and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return self.device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def check_device(name: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        ConverterError: When it cannot.
    """
    try:
        torch.ones(1, device=torch.device(name)).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConverterError(f"Device {name!r} cannot be used: {first_line(error)}") from None


def place_of(device: str) -> Place:
    """Find out which of how many processes this is, and give it its device.

    Raises:
        ConverterError: When accelerate or the device is not there.
    """
    check_device(device)
    try:
        from accelerate import PartialState
        from accelerate.utils import reduce
    except ImportError:
        raise ConverterError(
            "Fine-tuning needs accelerate; pip install 'flatconv[tune]'."
        ) from None
    where = torch.device(device)
    processes = PartialState(cpu=where.type == "cpu")
    if processes.num_processes > 1:
        where = processes.device
    return Place(
        processes.process_index,
        processes.num_processes,
        where,
        lambda tensor: reduce(tensor, "mean") if processes.num_processes > 1 else tensor,
    )
