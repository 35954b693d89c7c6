"""Broken and hostile files, at random but seeded: checkpoints, ONNX files, plans and data.

Every input is either read or refused by one sentence (``ConverterError``). What else happens is
printed and counted: another exception, a crash of the process, more than ten seconds, more memory
than the limit, a file written. Processes of their own read the inputs, so that a crash costs one
of them; ``--only onnx:123`` reads a single input again, here, with its traceback.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import pickle
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench_results import ROOT, write

sys.path.insert(0, str(ROOT))

import numpy as np

COUNT, HANG_S, MEMORY_GIB = 20_000, 10.0, 3.0
TARGETS = ("checkpoint", "onnx", "plan", "data")
NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**40, -(2**40), 2**63 - 1)
EVIL = (Path("evil_ran"), Path("/tmp/flatconv_evil"), Path("../../evil"))
TEXTS = ("", "x", "w0", "y", "../x", "/etc/passwd", "<b>", "\0", "ä" * 300, "conv1", "a/b", "..")


def shaken(rng: random.Random, content: bytes) -> bytes:
    """Change bytes here and there, or cut, repeat or move a part."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        at, length = rng.randrange(len(data)), min(rng.choice((1, 2, 4, 8, 64, 512)), len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            del data[at:]
        else:
            number = rng.choice(NUMBERS) & (2**64 - 1)
            data[at : at + 8] = struct.pack(rng.choice("<>") + "Q", number)
    return bytes(data)


def repacked(rng: random.Random, content: bytes) -> bytes:
    """Change a member of an archive, its name, or add one that is not what it says."""
    read = zipfile.ZipFile(io.BytesIO(content))
    names, out = read.namelist(), io.BytesIO()
    victim = rng.choice(names)
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as made:
        for name in names:
            member = read.read(name)
            if name == victim:
                kind = rng.randrange(6)
                if kind == 0:
                    continue
                if kind == 1:
                    name = rng.choice(("../../evil", "/tmp/flatconv_evil", name + "x", "a/../b"))
                elif kind == 2:
                    member = bytes(rng.choice((0, 10, 10**6, 3 * 10**8)))  # of zeros: a bomb
                else:
                    member = shaken(rng, member)
            made.writestr(name, member)
    return out.getvalue()


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Give code to run."""
        return (os.system, ("touch evil_ran",))


def checkpoints(rng: random.Random, folder: Path) -> Path:
    """Make a checkpoint."""
    import torch
    from safetensors.torch import save

    state = {f"{n}.weight": torch.full((4, 3, 3, 3), float(n)) for n in range(3)}
    kind = rng.randrange(5)
    if kind == 0:
        path, content = folder / "w.safetensors", save(state)
    elif kind == 1:
        nested: Any = {rng.choice(("state_dict", "model", "x")): rng.choice((state, Evil(), 3))}
        path, content = folder / "w.pt", pickle.dumps(nested)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=kind != 2)
        path, content = folder / rng.choice(("w.pt", "w.th", "w.tar")), buffer.getvalue()
        if kind == 3:
            path.write_bytes(repacked(rng, content))
            return path
    path.write_bytes(shaken(rng, content) if rng.random() < 0.95 else content)
    return path


def read_checkpoint(path: Path) -> None:
    """Read weights as ``convert --checkpoint`` does."""
    from torch import nn

    from converter.models.checkpoint import load_into, load_state

    load_into(
        nn.Sequential(*(nn.Conv2d(3, 4, 3, bias=False) for _ in range(3))), load_state(path), path
    )


def network() -> Any:
    """Make a small ONNX network with most of what is read."""
    import onnx
    from onnx import numpy_helper

    graph = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0)
        b = BatchNormalization (a, s, s, s, s)
        c = Relu (b)
        d = Conv <strides = [2, 2], group = 2> (c, w1, s)
        e = GlobalAveragePool (d)
        f = Flatten (e)
        y = Gemm <transB = 1> (f, w2)
    }"""
    model = onnx.parser.parse_model(graph)
    shapes = {"w0": (4, 3, 3, 3), "w1": (4, 2, 3, 3), "w2": (5, 4), "s": (4,)}
    for name, shape in shapes.items():
        array = np.ones(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def networks(rng: random.Random, folder: Path) -> Path:
    """Make an ONNX file."""
    import onnx

    model, path = network(), folder / "net.onnx"
    graph = model.graph
    if rng.random() < 0.3:
        path.write_bytes(shaken(rng, model.SerializeToString()))
        return path
    for _ in range(rng.choice((1, 1, 2, 3))):
        node, weight = rng.choice(graph.node), rng.choice(graph.initializer)
        kind = rng.randrange(16)
        if kind == 0 and weight.dims:
            weight.dims[rng.randrange(len(weight.dims))] = rng.choice(NUMBERS)
        elif kind == 1:
            weight.data_type = rng.randrange(-1, 30)
        elif kind == 2 and node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i = rng.choice(NUMBERS)
            for at in range(len(attribute.ints)):
                attribute.ints[at] = rng.choice(NUMBERS)
        elif kind == 3:
            node.input[rng.randrange(len(node.input))] = rng.choice(TEXTS)  # a cycle, at times
        elif kind == 4:
            node.output[0] = rng.choice(TEXTS)
        elif kind == 5:
            node.op_type = rng.choice(("Conv", "MatMul", "Loop", "Custom", "Resize", "If", ""))
        elif kind == 6:
            node.domain = rng.choice(("my.ops", "ai.onnx.ml", "com.microsoft", "\0"))
        elif kind == 7:
            del graph.node[rng.randrange(len(graph.node))]
            if not graph.node:
                break
        elif kind == 8:
            graph.node.append(copy.deepcopy(node))
        elif kind == 9:
            shape = rng.choice((graph.input[0], graph.output[0])).type.tensor_type.shape
            if shape.dim:
                rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
        elif kind == 10:
            weight.ClearField("raw_data")
            weight.data_location = onnx.TensorProto.EXTERNAL
            del weight.external_data[:]
            place = rng.choice(("/etc/passwd", "../../../etc/passwd", "link", ".", "net.onnx", ""))
            (folder / "link").unlink(missing_ok=True)
            (folder / "link").symlink_to("/etc/passwd")
            for key, value in {
                "location": place,
                "offset": str(rng.choice(NUMBERS)),
                "length": str(rng.choice(NUMBERS)),
            }.items():
                if rng.random() < 0.8:
                    weight.external_data.add(key=key, value=value)
        elif kind == 11:
            model.opset_import[0].version = rng.choice((*NUMBERS, 6, 7, 30))
        elif kind == 12:
            node.name = rng.choice(TEXTS)
            weight.name = rng.choice(TEXTS)
        elif kind == 13:
            leaf = onnx.helper.make_graph([copy.deepcopy(node)], "leaf", [], graph.output)
            inner = leaf
            for _ in range(rng.choice((1, 3, 20))):
                branches = {"then_branch": inner, "else_branch": leaf}
                branch = onnx.helper.make_node("If", ["c"], ["y"], **branches)
                inner = onnx.helper.make_graph([branch], "inner", [], graph.output)
            graph.node.append(inner.node[0])
        elif kind == 14:
            function = onnx.helper.make_function(
                "my.ops",
                "F",
                ["p"],
                ["q"],
                [onnx.helper.make_node("F", ["p"], ["q"], domain="my.ops")],
                [onnx.helper.make_opsetid("my.ops", 1)],
            )
            model.functions.append(function)  # that calls itself
            model.opset_import.append(onnx.helper.make_opsetid("my.ops", 1))
            node.op_type, node.domain = "F", "my.ops"
            del node.input[1:], node.attribute[:]
        else:
            weight.raw_data = weight.raw_data[: rng.choice((0, 1, 7, 40))]
    path.write_bytes(model.SerializeToString())
    return path


def read_network(path: Path) -> None:
    """Read a network and list its layers, as ``inspect`` does."""
    from converter.options import Options
    from converter.pipeline import list_layers, open_source

    config = Options.of(cache=False)
    list_layers(open_source(path, None, config, None), config)


def values(rng: random.Random, depth: int = 0) -> Any:
    """Make a JSON value."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice((*NUMBERS, 0.5, 1e308, -0.0))
    if kind < 4:
        return rng.choice((*TEXTS, "flattened", "channel", "16"))
    if kind == 4:
        return rng.choice((None, True, False))
    inner = [values(rng, depth + 1) for _ in range(rng.randrange(4))]
    return inner if kind < 7 else {str(rng.choice(TEXTS)): value for value in inner}


def plans(rng: random.Random, folder: Path) -> Path:
    """Make a plan."""
    path = folder / "plan.json"
    plan: Any = {
        "format": "flatconv-plan",
        "version": 1,
        "seed": 0,
        "input_shapes": {"x": [1, 3, 8, 8]},
        "layers": {
            "w0": {"form": "flattened", "rank": [4]},
            "w1": {"form": "channel", "rank": [2]},
            "w2": {"reason": "kept"},
        },
    }
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder = rng.choice((plan, plan["layers"], *plan["layers"].values()))
        if isinstance(holder, dict) and holder:
            key = rng.choice((*holder, rng.choice(TEXTS)))
            if rng.random() < 0.2:
                holder.pop(key, None)
            else:
                holder[key] = values(rng)
        if not isinstance(plan.get("layers"), dict):
            break
    text = json.dumps(plan)
    if rng.random() < 0.1:
        text = "[" * rng.choice((10, 10**5)) + text
    content = text.encode()
    path.write_bytes(shaken(rng, content) if rng.random() < 0.3 else content)
    return path


PLANNED: list[Any] = []


def read_plan(path: Path) -> None:
    """Replay a plan on a network."""
    import onnx_ir as ir

    from converter.graph.canonicalize import canonicalize
    from converter.graph.survey import survey
    from converter.options import Options
    from converter.search.plan import make_plan

    if not PLANNED:
        found = canonicalize(ir.from_proto(network()))
        PLANNED.append(survey(found, {"x": np.zeros((1, 3, 8, 8), np.float32)}))
    make_plan(PLANNED[0], Options.of(plan=path), {"x": (1, 3, 8, 8)})


def datasets(rng: random.Random, folder: Path) -> Path:
    """Make an .npz file or a folder of images."""
    from PIL import Image

    if rng.random() < 0.4:
        pictures = folder / "images"
        pictures.mkdir(exist_ok=True)
        kind = rng.choice(("png", "jpeg", "bmp", "gif", "webp", "tiff"))
        path, buffer = pictures / f"a.{kind}", io.BytesIO()
        side = rng.choice((8, 8, 9, 1))
        if kind == "png" and rng.random() < 0.02:
            side = 20_000  # a bomb: small, until it is read
        Image.new("RGB" if side < 100 else "1", (side, side)).save(buffer, kind)
        path.write_bytes(shaken(rng, buffer.getvalue()) if side < 100 else buffer.getvalue())
        return pictures
    buffer, path = io.BytesIO(), folder / "data.npz"
    x: Any = np.zeros((2, 8, 8, 3), np.uint8)
    x = rng.choice(
        (x, x.transpose(0, 3, 1, 2).astype(np.float32), np.array([Evil(), {}]), x[0, 0, 0, 0])
    )
    save = rng.choice((np.savez, np.savez_compressed))
    save(buffer, x=x, y=rng.choice((np.arange(2), np.ones(2), np.array(["a", "b"]))))
    content = buffer.getvalue()
    path.write_bytes(repacked(rng, content) if rng.random() < 0.5 else shaken(rng, content))
    return path


def read_data(path: Path) -> None:
    """Read sample inputs as ``--calib`` does."""
    from converter.graph.network import Input
    from converter.models import source
    from converter.options import Options

    spec = (Input("x", (None, 3, 8, 8), np.dtype(np.float32)),)
    found = source.read_data(str(path), spec, Options())
    found.read(np.arange(min(found.count, 4)))


MAKE: dict[str, Callable[[random.Random, Path], Path]] = {
    "checkpoint": checkpoints,
    "onnx": networks,
    "plan": plans,
    "data": datasets,
}
READ: dict[str, Callable[[Path], None]] = {
    "checkpoint": read_checkpoint,
    "onnx": read_network,
    "plan": read_plan,
    "data": read_data,
}


def attempt(target: str, number: int, seed: int) -> str:
    """Make an input and read it, in a folder of its own that is all it may write to."""
    from converter.errors import ConverterError

    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = MAKE[target](random.Random(f"{seed} {target} {number}"), Path(folder))
        before = {p for p in Path(folder).rglob("*")}
        try:
            READ[target](path)
            verdict = "read"
        except ConverterError as error:
            verdict = "refused" if str(error).strip() else "BUG an empty message"
        written = {p for p in Path(folder).rglob("*")} - before
        if written or any(path.exists() for path in EVIL):
            return f"BUG it wrote {sorted(map(str, written))}"
        return verdict


def work(target: str, first: int, last: int, seed: int) -> int:
    """Read inputs one after the other, and say what became of each."""
    import torch  # the limit counts from what the libraries take

    torch.set_num_threads(1)
    attempt(target, -1, seed)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(MEMORY_GIB * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in range(first, last):
        print(f"\n@ {number}", flush=True)
        try:
            verdict = attempt(target, number, seed)
        except BaseException as error:
            verdict = f"BUG {type(error).__name__}: {str(error).splitlines()[:1]}"
        print(f"\n= {verdict}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n# {peak:.3f}", flush=True)
    return 0


def watched(target: str, count: int, seed: int, scratch: Path) -> Iterator[tuple[int, str]]:
    """Have processes read inputs; give the number and the verdict of each.

    The number -1 comes with the peak memory of a process, in GiB.
    """
    number = 0
    while number < count:
        started = number
        command = [sys.executable, __file__, "--work", target, str(number), str(count)]
        process = subprocess.Popen(
            [*command, "--seed", str(seed)],
            cwd=scratch,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        now, begun, rest = None, time.monotonic() + 60, b""
        while True:
            ready, _, _ = select.select([process.stdout], [], [], 0.5)
            if ready:
                chunk = os.read(process.stdout.fileno(), 65536)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    text = line.decode(errors="replace")
                    if text.startswith("@ "):
                        now, begun = int(text[2:]), time.monotonic()
                    elif text.startswith("= ") and now is not None:
                        yield now, text[2:]
                        number, now = now + 1, None
                    elif text.startswith("# "):
                        yield -1, text[2:]
                if not chunk:
                    break
            if time.monotonic() - begun > HANG_S:
                process.kill()
                yield number, f"BUG it took more than {HANG_S:g} s"
                number, now = number + 1, None
                break
        process.kill()
        status = process.wait()
        if number == started and now is None:
            raise SystemExit(f"{target}: no input could be read (status {status}).")
        if now is not None:
            yield now, f"BUG the process died with status {status}"
            number = now + 1


def main() -> int:
    """Read many inputs, print what went wrong, and write ``scripts/results/fuzz.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=COUNT, help="of inputs, all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="KIND:NUMBER, read again here")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        target, first, last = options.work
        return work(target, int(first), int(last), options.seed)
    if options.only:
        target, number = options.only.split(":")
        print(attempt(target, int(number), options.seed))
        return 0
    rows, bugs = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for target in TARGETS:
            seen: Counter[str] = Counter()
            start, peak = time.perf_counter(), 0.0
            for number, verdict in watched(target, options.count // 4, options.seed, Path(scratch)):
                if number < 0:
                    peak = max(peak, float(verdict))
                    continue
                seen[verdict.split()[0]] += 1
                if verdict.startswith("BUG"):
                    print(f"{target}:{number} {verdict}", flush=True)
            bugs += seen["BUG"]
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "name": target,
                    "inputs": sum(seen.values()),
                    "read": seen["read"],
                    "refused": seen["refused"],
                    "failed": seen["BUG"],
                    "seconds": seconds,
                    "peak_gib": peak,
                    "target": "none fails",
                    "met": not seen["BUG"],
                }
            )
            print(rows[-1], flush=True)
        left = sorted(os.listdir(scratch))
    print("left behind:", left or "nothing")
    from converter.evaluation.compare import versions
    from converter.runtime.ort import cpu_model

    write("fuzz", {"cpu": cpu_model(), "threads": 1, "versions": versions()}, rows)
    return int(bool(bugs or left))


if __name__ == "__main__":
    sys.exit(main())
