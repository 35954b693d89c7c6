"""Train the sample network on CIFAR-10 and write its checkpoint and the embedded data sets.

SGD with one cycle, bfloat16 autocast, channels last; random crops and flips. The state is saved
after every epoch in ``runs/train_sample/state.pt``, and training continues from there. Needs
``data/cifar10`` (``scripts/fetch_cifar10.py``). Takes less than an hour on two cores.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sample_models import paper_cifar10  # noqa: E402

CALIB_IMAGES, EVAL_IMAGES = 512, 2000


def load_split(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Load one split as uint8 images (N, 3, 32, 32) and labels (N,)."""
    with np.load(folder / f"{name}.npz") as data:
        return torch.from_numpy(data["x"]).permute(0, 3, 1, 2), torch.from_numpy(data["y"])


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Crop each 32x32 window at random from images padded by 4, and flip half of them."""
    count = len(images)
    padded = functional.pad(images.float() / 255, (4, 4, 4, 4), mode="reflect")
    top, left = (torch.randint(0, 9, (count, 1, 1), generator=generator) for _ in range(2))
    rows = top + torch.arange(32).view(1, 32, 1)
    columns = left + torch.arange(32).view(1, 1, 32)
    flip = torch.rand(count, 1, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(2), columns)
    picked = padded.permute(0, 2, 3, 1)[torch.arange(count).view(-1, 1, 1), rows, columns]
    return picked.permute(0, 3, 1, 2)  # (N, 3, 32, 32), channels last in memory


@dataclass(frozen=True)
class Recipe:
    """Settings of the training."""

    epochs: int
    batch_size: int = 128
    max_lr: float = 0.1
    weight_decay: float = 5e-4
    seed: int = 0


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of ``images`` whose largest logit is their label, in float32."""
    model.eval()
    hits = 0
    for x, y in zip(images.split(500), labels.split(500)):
        logits = model((x.float() / 255).contiguous(memory_format=torch.channels_last))
        hits += int((logits.argmax(1) == y).sum())
    return hits / len(images)


def embed(folder: Path, seed: int) -> None:
    """Write the small calibration and evaluation sets that travel with the project."""
    rng = np.random.default_rng(seed)
    for split, name, count in (("train", "calib", CALIB_IMAGES), ("test", "eval", EVAL_IMAGES)):
        with np.load(folder / f"{split}.npz") as data:
            x, y = data["x"], data["y"]
        picked = np.sort(rng.permutation(len(x))[:count])
        np.savez_compressed(
            ROOT / "sample_models" / f"cifar10_{name}.npz", x=x[picked], y=y[picked]
        )


def take_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> float:
    """Train on one batch, and return its loss."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    loss = functional.cross_entropy(logits.float(), y, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.item())


def train(
    images: torch.Tensor,
    labels: torch.Tensor,
    test: tuple[torch.Tensor, torch.Tensor],
    state_path: Path,
    recipe: Recipe,
) -> nn.Module:
    """Train the network and print a line per epoch.

    Args:
        images: Training images (N, 3, 32, 32) of bytes.
        labels: Their classes (N,).
        test: Test images and their classes.
        state_path: Where training continues, and where its state is saved.
        recipe: Settings of the training.
    """
    epochs, batch_size, seed = recipe.epochs, recipe.batch_size, recipe.seed
    state_path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model: nn.Module = paper_cifar10.build()
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(images) // batch_size
    optimizer = torch.optim.SGD(
        model.parameters(),
        recipe.max_lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.max_lr, total_steps=epochs * steps, pct_start=0.2
    )
    first_epoch = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first_epoch = state["epoch"]

    for epoch in range(first_epoch, epochs):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed * 1000 + epoch)
        order = torch.randperm(len(images), generator=generator)
        model.train()
        losses = []
        for picked in order[: steps * batch_size].view(steps, -1):
            x = augment(images[picked], generator)
            losses.append(take_step(model, optimizer, x, labels[picked]))
            schedule.step()
        score = accuracy(model, *test)
        print(
            f"epoch {epoch + 1}/{epochs} loss {np.mean(losses):.3f} "
            f"test accuracy {score:.4f} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "epoch": epoch + 1,
        }
        torch.save(state, state_path.with_suffix(".tmp"))
        state_path.with_suffix(".tmp").replace(state_path)
    return model


def main() -> int:
    """Train, and write ``sample_models/paper_cifar10.safetensors``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "cifar10")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--max-lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    embed(options.data, options.seed)
    test = load_split(options.data, "test")
    state = ROOT / "runs" / "train_sample" / "state.pt"
    values = (options.batch_size, options.max_lr, options.weight_decay, options.seed)
    recipe = Recipe(options.epochs, *values)
    model = train(*load_split(options.data, "train"), test, state, recipe)
    save(model, ROOT / "sample_models" / "paper_cifar10.safetensors")
    print(f"test accuracy {accuracy(model, *test):.4f}")
    return 0


def save(model: nn.Module, path: Path) -> None:
    """Write a checkpoint."""
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


if __name__ == "__main__":
    sys.exit(main())
