"""Small conversions that several test files look at, and what their networks give."""

import contextlib
import json
import resource
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import torch
from networks import noise
from torch import nn

import converter

X = noise(5, 3, 8, 8)


def outputs(model, x=X):
    """What a network gives for ``x``: an ONNX file or model, or a torch module."""
    if isinstance(model, nn.Module):
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def converted(folder, model, example_input=None, **options):
    """Convert and save; give the result, the folder and its report."""
    result = converter.convert(model, example_input, **options)
    result.save(folder)
    report = json.loads((folder / "report.json").read_text())
    return SimpleNamespace(result=result, folder=folder, report=report)


@contextlib.contextmanager
def files_of_at_most(size):
    """Let no file grow beyond ``size`` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
