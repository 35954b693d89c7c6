"""Training a converted network toward its original, so that chains of small filters learn.

A chain multiplies the gradients of its steps (arXiv 1412.5474, section 3.2): the norms of its
factors are balanced before (``Chain.balanced``), each step learns in proportion to the size of its
weights, gradients are clipped, and no step but the last has a bias.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from converter.data import Data
from converter.errors import ConverterError, first_line
from converter.networks.torch_export import copied
from converter.tuning.lesson import Loss, Recipe, Run, Tensors, distillation, inside, whole
from converter.tuning.state import State, Weights, read_state

HELD_OUT, MOST_HELD, BATCH, HELD_BYTES = 0.1, 2048, 128, 2**28
MAX_GRADIENT_NORM = 1.0
WARM_UP, LAST_LR = 0.1, 0.01  # share of the steps, and of the highest learning rate
AVERAGED = 0.25  # of an epoch that the moving average looks back on, at most
SAVE_S = 60.0
FEWEST_BATCHES = 8  # of an epoch, smaller ones where there is little data
MOST_SCALE = 8.0  # by which a tensor's learning rate may differ from the usual

Enough = Callable[[Sequence[np.ndarray], Sequence[np.ndarray], np.ndarray | None], bool]


@dataclass(frozen=True)
class Tuned:
    """A network after training.

    Attributes:
        model: In evaluation mode.
        epochs: Passes over the data that were made.
        first_loss: On the held-out part, before.
        best_loss: And of the weights that were kept.
    """

    model: nn.Module
    epochs: float
    first_loss: float
    best_loss: float


@dataclass(frozen=True)
class Place:
    """Where training runs: one of several processes, and its device."""

    rank: int
    processes: int
    device: torch.device
    mean: Callable[[torch.Tensor], torch.Tensor]


def tune(
    student: nn.Module,
    teacher: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    loss: Loss = distillation,
    features: Sequence[str] = (),
    enough: Enough | None = None,
    device: str = "cpu",
    state: Path | None = None,
    resume: bool = False,
    progress: Callable[[float], None] = lambda done: None,
) -> Tuned:
    """Train a copy of ``student`` to give what ``teacher`` gives (and the labels, if any).

    AdamW, warm-up and cosine, clipped gradients. The weights kept are those of the moving average
    that lose least on a part of the data that is held out, those given included: tuning never makes
    that part worse. Run by ``accelerate launch``, every batch is shared by all processes.

    Args:
        student: The converted model; left as it is.
        teacher: The original, in evaluation mode; left as it is.
        data: Training inputs, in the order of the models' parameters.
        recipe: How to train.
        loss: What outputs (or features) lose.
        features: Modules of both models to compare instead of the outputs.
        enough: Tells from the original's and the student's outputs on the held-out part, and its
            labels, whether training may stop.
        device: torch device to train on.
        state: File to keep the state of the training in, every minute, or None.
        resume: Whether to go on from that file, if it is there.
        progress: Called with the share done.

    Raises:
        ConverterError: When there is too little data, its labels do not fit, the device is not
            there, or accelerate is not installed.
    """
    place = place_of(device)
    held, train = _parted(data, recipe.seed)
    model, original = (
        _laid_out(copied(m).to(place.device), torch.channels_last) for m in (student, teacher)
    )
    original.eval()
    answer: Run = inside(model, features) if features else whole(model)
    wanted: Run = inside(original, features) if features else whole(original)
    if train.labels is not None and loss is distillation:
        _check_labels(wanted, train, place.device)

    def loss_of(inputs: Tensors, labels: torch.Tensor | None) -> torch.Tensor:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=recipe.bfloat16):
            with torch.no_grad():
                targets = wanted(inputs)
            outputs = answer(inputs)
        return loss(outputs, targets, labels)

    def held_out() -> tuple[float, bool]:
        model.eval()
        total, befores, afters = 0.0, [], []
        with torch.no_grad():
            for indices, feeds in held.batches(BATCH):
                inputs = _moved([torch.from_numpy(feed) for feed in feeds.values()], place.device)
                labels = None if held.labels is None else torch.from_numpy(held.labels[indices])
                labels = None if labels is None else labels.long().to(place.device)
                targets, outputs = wanted(inputs), answer(inputs)
                total += float(loss(outputs, targets, labels)) * len(indices)
                befores.append(targets[0].float().cpu().numpy())
                afters.append(outputs[0].float().cpu().numpy())
        return total / held.count, enough is not None and enough(befores, afters, held.labels)

    batches = max(train.count // recipe.batch_size, min(FEWEST_BATCHES, train.count // 2))
    steps = recipe.epochs * batches
    optimizer, scales = _optimizer(model, recipe)
    now = read_state(state, model.state_dict()) if resume and state is not None else None
    if now is None:
        first_loss, done = held_out()
        start = _copy(model.state_dict())
        now = State(0, start, start, start, {}, first_loss, first_loss)
        steps = 0 if done else steps
    model.load_state_dict(now.weights)
    if now.moments:
        _restore(optimizer, now)
    average, best, best_loss, taken = _copy(now.average), now.best, now.best_loss, now.step
    average = {name: tensor.to(place.device) for name, tensor in average.items()}
    saved_s = time.monotonic()
    for step, parts in _read(train, recipe, taken, steps, batches, place):
        with torch.random.fork_rng([place.device] if place.device.type == "cuda" else []):
            # Of dropout, say, that a model calls as a function.
            torch.manual_seed(hash((recipe.seed, step, place.rank)) % 2**31)
            _training_mode(model, recipe.batch_statistics)
            optimizer.zero_grad()
            for inputs, labels, share in parts:
                labels = None if labels is None else labels.long().to(place.device)
                (share * loss_of(_moved(inputs, place.device), labels)).backward()
        _average_gradients(model, place)
        for group, scale in zip(optimizer.param_groups, scales):
            group["lr"] = recipe.lr * scale * _schedule((step + 0.5) / steps)
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        if norm.isfinite():
            optimizer.step()
            _follow(average, model.state_dict(), step, max(int(AVERAGED * batches), 1))
        taken, done = step + 1, False
        progress(taken / steps)
        if taken % batches == 0:
            current = _copy(model.state_dict())
            average = {n: place.mean(t) if t.is_floating_point() else t for n, t in average.items()}
            model.load_state_dict(average)
            found, done = held_out()
            if found < best_loss or done:
                best_loss, best = found, _copy(average)
            model.load_state_dict(current)
        late = time.monotonic() - saved_s > SAVE_S
        if state is not None and place.rank == 0 and (late or taken % batches == 0):
            moments = _moments(optimizer)
            reached = State(
                steps if done else taken, model.state_dict(), average, best, moments, best_loss,
                now.first_loss,
            )  # fmt: skip
            reached.save(state)
            saved_s = time.monotonic()
        if done:
            progress(1.0)
            break
    model.load_state_dict(best)
    shipped = _laid_out(model.cpu(), torch.contiguous_format)
    return Tuned(shipped.eval(), taken / batches, now.first_loss, best_loss)


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


def _parted(data: Data, seed: int) -> tuple[Data, Data]:
    """Hold a part of the data out, without augmentation; the rest is trained on.

    Raises:
        ConverterError: When too little is left.
    """
    each = sum(array.nbytes for array in data.read(np.arange(1)).values())
    most = min(MOST_HELD, max(HELD_BYTES // each, 1))
    count = min(max(int(HELD_OUT * data.count), 1), most)
    if data.count - count < 2:
        raise ConverterError(f"Data {data.source} has {data.count} examples; too few to train on.")
    order = np.random.default_rng(seed).permutation(data.count)
    return data.take(np.sort(order[:count])), data.take(np.sort(order[count:]))


def _check_labels(run: Run, data: Data, device: torch.device) -> None:
    feeds = [torch.from_numpy(feed) for feed in data.read(np.arange(2)).values()]
    with torch.no_grad():
        first = run(_moved(feeds, device))[0]
    assert data.labels is not None
    if first.ndim != 2 or not 0 <= data.labels.min() <= data.labels.max() < first.shape[1]:
        raise ConverterError(
            f"The labels of {data.source} do not fit the network's outputs of shape "
            f"{tuple(first.shape[1:])}; give classes from 0 on, or leave y out."
        )


def _optimizer(model: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, list[float]]:
    """Make an optimizer of a group a tensor, and say how the learning rate of each is scaled.

    AdamW moves every entry by about the learning rate. The entries of a 1-D filter are several
    times those of the 1x1 convolutions beside it, which would forget before it learns.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sizes = [float(p.detach().square().mean().sqrt()) if p.ndim > 1 else 0.0 for p in parameters]
    known = [math.log(size) for size in sizes if size > 0]
    usual = math.exp(sum(known) / max(len(known), 1))
    scales = [
        min(max(size / usual, 1 / MOST_SCALE), MOST_SCALE) if size and recipe.scaled_steps else 1.0
        for size in sizes
    ]
    groups = [{"params": [parameter]} for parameter in parameters]
    return torch.optim.AdamW(groups, recipe.lr, weight_decay=0.0), scales


def _schedule(done: float) -> float:
    """Give the share of the learning rate when a share of the steps is done."""
    if done < WARM_UP:
        return LAST_LR + (1 - LAST_LR) * done / WARM_UP
    return LAST_LR + (1 - LAST_LR) * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


class _Batches(Dataset):
    """The batches of all steps, each read and augmented by what its number says."""

    def __init__(
        self, data: Data, recipe: Recipe, first: int, steps: int, batches: int, place: Place
    ) -> None:
        """Take the steps from ``first`` on; each process has its share of every batch."""
        self.data, self.recipe, self.first, self.steps = data, recipe, first, steps
        self.batches, self.rank, self.processes = batches, place.rank, place.processes

    def __len__(self) -> int:
        """Count the steps that are left."""
        return max(self.steps - self.first, 0)

    def __getitem__(self, number: int) -> list[tuple[list[np.ndarray], np.ndarray | None, float]]:
        """Read the parts of a step: inputs, labels, and the share of each part."""
        if number >= len(self):
            raise IndexError(number)
        epoch, batch = divmod(self.first + number, self.batches)
        order = np.random.default_rng((self.recipe.seed, epoch)).permutation(self.data.count)
        mine = np.array_split(np.array_split(order, self.batches)[batch], self.processes)[self.rank]
        found = []
        for part in np.array_split(mine, min(self.recipe.accumulate, len(mine))):
            rng = np.random.default_rng((self.recipe.seed, epoch, int(part[0])))
            labels = None if self.data.labels is None else self.data.labels[part]
            feeds = self.data.augmented(part, rng)
            found.append((list(feeds.values()), labels, len(part) / len(mine)))
        return found


def _read(
    data: Data, recipe: Recipe, first: int, steps: int, batches: int, place: Place
) -> Iterator[tuple[int, list[tuple[list[torch.Tensor], torch.Tensor | None, float]]]]:
    """Iterate over the steps that are left: number, and its parts as tensors."""
    loader = DataLoader(
        _Batches(data, recipe, first, steps, batches, place),
        batch_size=None,
        num_workers=recipe.workers,
        generator=torch.Generator(),  # it draws a number, which is not to be the global one's
        collate_fn=_as_tensors,
    )
    return enumerate(loader, first)


def _as_tensors(
    parts: list[tuple[list[np.ndarray], np.ndarray | None, float]],
) -> list[tuple[list[torch.Tensor], torch.Tensor | None, float]]:
    return [
        (
            [torch.from_numpy(feed) for feed in feeds],
            None if labels is None else torch.from_numpy(labels),
            share,
        )
        for feeds, labels, share in parts
    ]


def _laid_out(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Lay out the weights of 2-D convolutions."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.clone(memory_format=layout)
    return model


def _moved(inputs: Tensors, device: torch.device) -> list[torch.Tensor]:
    return [
        x.to(device, memory_format=torch.channels_last if x.ndim == 4 else torch.preserve_format)
        for x in inputs
    ]


def _average_gradients(model: nn.Module, place: Place) -> None:
    """Average the gradients of all processes, in one message."""
    if place.processes == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    together = place.mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients])):
        gradient.copy_(mean.view(gradient.shape))


def _follow(average: Weights, weights: Weights, step: int, window: int) -> None:
    """Move the average toward the weights."""
    share = 1 / min(window, 1 + step / 4)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, share)
        else:
            average[name].copy_(tensor)


def _training_mode(model: nn.Module, batch_statistics: bool) -> None:
    """Train without dropout; BatchNorm sees the batch, or keeps its statistics."""
    model.train()
    for module in model.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if isinstance(module, nn.modules.dropout._DropoutNd) or (is_norm and not batch_statistics):
            module.eval()


def _moments(optimizer: torch.optim.Optimizer) -> Weights:
    """Name the optimizer's tensors."""
    return {
        f"{number}/{name}": tensor
        for number, tensors in optimizer.state_dict()["state"].items()
        for name, tensor in tensors.items()
    }


def _restore(optimizer: torch.optim.Optimizer, state: State) -> None:
    found: dict[int, Weights] = {}
    for key, tensor in state.moments.items():
        number, _, name = key.partition("/")
        found.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": found, "param_groups": groups})


def _copy(weights: Weights) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
