"""Student and teacher on the device of training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from converter.data.data import Data
from converter.errors import ConverterError, root_line
from converter.models.wrappers import copied
from converter.processes import ProcessGroup
from converter.quantization.rounding import fake_quantize
from converter.training.losses import Loss, Run, Tensors, model_outputs, module_outputs
from converter.training.task import Recipe, TrainingTask


@dataclass(frozen=True)
class ModelPair:
    """Copies of student and teacher in float32 and evaluation mode.

    Attributes:
        model: The student's copy; training changes its weights.
        student: Runs ``model`` for the tensors that are compared; for int8 with simulated rounding.
        teacher: Runs the teacher's copy for the same tensors.
        device: Device of both.
        layout: Memory format of 4-D weights and inputs.
        bfloat16: Whether ``training_loss`` computes activations in bfloat16.
    """

    model: nn.Module
    student: Run
    teacher: Run
    device: torch.device
    layout: torch.memory_format
    bfloat16: bool

    def to_device(
        self, inputs: Tensors, labels: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Move a batch to the device; floats become float32, images get the layout."""
        moved = [
            x.to(self.device, torch.float32 if x.is_floating_point() else None) for x in inputs
        ]
        laid_out = [x.contiguous(memory_format=self.layout) if x.ndim == 4 else x for x in moved]
        return laid_out, None if labels is None else labels.to(self.device)

    def training_loss(
        self, loss: Loss, inputs: Tensors, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """Compute the loss of a batch, with gradients.

        Raises:
            ConverterError: If the loss has no gradient.
        """
        inputs, labels = self.to_device(inputs, labels)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            with torch.no_grad():
                targets = self.teacher(inputs)
            value = loss(self.student(inputs), targets, labels)
        if not value.requires_grad:
            raise ConverterError(
                "The loss has no gradient: no output depends on trainable weights."
            )
        return value


def prepare_models(
    task: TrainingTask, recipe: Recipe, group: ProcessGroup
) -> tuple[ModelPair, list[torch.Tensor]]:
    """Copy student and teacher to the device, and run both on two examples.

    The layout is channels last, unless the models do not run in it.

    Returns:
        Both models, and the teacher's outputs (2, ...).

    Raises:
        ConverterError: If the models cannot be copied, do not run, or give different kinds of
            outputs.
    """
    models = [copied(m).float().to(group.device).eval() for m in (task.student, task.teacher)]
    student, teacher = (
        module_outputs(m, task.features) if task.features else model_outputs(m) for m in models
    )
    student = fake_quantize(student) if recipe.int8 else student
    bfloat16 = recipe.bfloat16 and group.computes_bfloat16()
    indices = np.arange(2) % task.data.count
    feeds = [torch.from_numpy(feed) for feed in task.data.read(indices).values()]
    for layout in (torch.channels_last, torch.contiguous_format):
        for model in models:
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=layout)
        pair = ModelPair(models[0], student, teacher, group.device, layout, bfloat16)
        try:
            with torch.no_grad():
                inputs, _ = pair.to_device(feeds, None)
                outputs, targets = student(inputs), teacher(inputs)
            break
        except Exception as error:  # the user's model may raise anything
            if layout is torch.contiguous_format:
                raise ConverterError(
                    f"The network cannot be trained on {task.data.source}, two examples a call: "
                    f"{root_line(error)}"
                ) from None
    if not targets or [o.shape for o in outputs] != [t.shape for t in targets]:
        raise ConverterError("The converted network gives other outputs than the original.")
    return pair, targets


def check_labels(data: Data, output: torch.Tensor) -> None:
    """Check that labels, if there are any, are classes of an output (N, C).

    Raises:
        ConverterError: If they are not.
    """
    labels = data.labels
    if labels is None and data.load_batch is None:
        return
    classes = labels is not None and labels.dtype.kind in "iu" and output.ndim == 2
    if not classes or labels is None or not 0 <= labels.min() <= labels.max() < output.shape[1]:
        raise ConverterError(
            f"The labels of {data.source} do not fit the network's outputs of shape "
            f"{tuple(output.shape[1:])}; give classes from 0 on, or pass --no-labels."
        )
