"""Two linear steps whose components differ in size, for several test files."""

import numpy as np
import onnx_ir as ir
from networks import from_text, noise

from converter.data.data import from_arrays
from converter.graph.network import open_session
from converter.runtime.ort import run


def chain(groups=1, matrix=False, seed=0):
    """Two linear steps whose components differ in size by a thousand; and inputs."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-1.5, 1.5, 8)
    if matrix:
        w, v = rng.standard_normal((6, 8)) * sizes, rng.standard_normal((8, 4)) / sizes[:, None]
        text = "net (float[N, 6] x) => (float[N, 4] y) { a = MatMul (x, w) y = Gemm (a, v) }"
        weights, x = {"w": w, "v": v}, noise(32, 6, seed=seed)
    else:
        w = rng.standard_normal((8, 3, 1, 1)) * sizes[:, None, None, None]
        v = rng.standard_normal((8, 8 // groups, 3, 3))
        v /= np.repeat(sizes.reshape(groups, -1), 8 // groups, axis=0)[..., None, None]
        text = f"""net (float[N, 3, 6, 6] x) => (float[N, 8, 6, 6] y) {{
            a = Conv (x, w, b)
            y = Conv <group = {groups}, pads = [1, 1, 1, 1]> (a, v) }}"""
        weights, x = {"w": w, "b": sizes, "v": v}, noise(32, 3, 6, 6, seed=seed)
    model = from_text(text, **{name: a.astype(np.float32) for name, a in weights.items()})
    return ir.from_proto(model), from_arrays({"x": x}, "noise")


def outputs(network, data):
    feeds = data.read(np.arange(data.count))
    return next(iter(run(open_session(network), feeds).values()))
