"""Quantized steps are held against their values in floating point."""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import difference
from networks import from_text, noise
from scaled_chain import chain, outputs

from converter.data.data import from_arrays
from converter.quantization.int8 import quantize_within
from converter.quantization.quantize import observed_ranges, quantized
from converter.quantization.step_check import wrong_steps
from converter.runtime.ort import OnnxRuntime

GRAPHS = {
    "convolutions": """r = Conv <pads = [1, 1, 1, 1]> (x, w, b) a = Relu (r)
        c = Conv <group = 2, pads = [1, 1, 1, 1]> (a, v) s = Sigmoid (c) m = Mul (c, s)
        y = ConvTranspose (m, u)""",
    "sums and joins": """r = Conv <pads = [1, 1, 1, 1]> (x, w, b) a = Add (r, x)
        j = Concat <axis = 1> (a, x) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (j)
        q = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (j) t = Add (p, q)
        y = Conv (t, z)""",
    "products": """g = GlobalAveragePool (x) f = Flatten (g) l = LeakyRelu (f) y = Gemm (l, k)""",
}
WEIGHTS = {"w": noise(8, 8, 3, 3), "b": noise(8), "v": noise(8, 4, 3, 3, seed=1)}
WEIGHTS |= {"u": noise(8, 8, 1, 1, seed=2), "z": noise(8, 16, 1, 1), "k": noise(8, 8, seed=3)}


def network_of(body):
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {name: array for name, array in WEIGHTS.items() if name in words}
    shape = "N, 8" if "Gemm" in body else "N, 8, H, W"
    text = f"net (float[N, 8, 8, 8] x) => (float[{shape}] y) {{ {body} }}"
    network = ir.from_proto(from_text(text, **used))
    return network, from_arrays({"x": noise(16, 8, 8, 8)}, "noise")


@pytest.mark.parametrize("body", GRAPHS.values(), ids=GRAPHS)
def test_nothing_is_wrong_with_what_onnxruntime_computes_here(body):
    network, data = network_of(body)
    int8 = quantized(network, observed_ranges(network, data, 16))
    assert wrong_steps(network, int8, data.read(np.arange(2))) == ()


@dataclass(frozen=True)
class Faulty(OnnxRuntime):
    """onnxruntime on a processor that computes some quantized convolution wrongly.

    Attributes:
        step: Name of the weight of this convolution, or of the tensor of another step.
        factor: Factor of the weight of its first output channel.
    """

    step: str = "v"
    factor: float = 0.0

    def open(self, model, weights=None, **files):
        graph = (loaded := onnx.load_from_string(model)).graph
        for tensor in graph.initializer:
            if tensor.name == f"{self.step}_quantized":
                array = onnx.numpy_helper.to_array(tensor).copy()
                array[0] = np.round(self.factor * array[0]).astype(array.dtype)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return super().open(loaded.SerializeToString(), weights, **files)


@pytest.mark.parametrize(("factor", "wrong"), [(1.0, False), (0.98, False), (0.0, True)])
def test_a_step_that_is_computed_wrongly_is_found(factor, wrong):
    network, data = network_of(GRAPHS["convolutions"])
    int8 = quantized(network, observed_ranges(network, data, 16))
    found = wrong_steps(network, int8, data.read(np.arange(2)), Faulty(factor=factor))
    assert [step.outputs for step in found] == [("c",)] * wrong
    assert all(step.error > 2 for step in found)


def test_a_wrong_step_stays_in_floating_point_and_is_told_of():
    network, data = network_of(GRAPHS["convolutions"])
    sound = quantize_within(network, data)
    assert sound.notes == ()
    shipped = quantize_within(network, data, runtime=Faulty())
    (note,) = shipped.notes
    assert note.startswith("Layer v stays in floating point: ")
    names = {value.name for value in shipped.network.graph.initializers.values()}
    assert {"w_quantized", "u_quantized", "v"} <= names and "v_quantized" not in names
    wanted = outputs(network, data)
    assert difference(outputs(shipped.network, data), wanted) < 0.05


def test_a_weight_that_was_quantized_wrongly_is_found():
    network, data = chain()
    int8 = quantized(network, observed_ranges(network, data, 16))
    value = int8.graph.initializers["b_quantized"]
    feeds = data.read(np.arange(2))
    assert wrong_steps(network, int8, feeds) == ()
    value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy(), name=value.name)
    assert [step.outputs for step in wrong_steps(network, int8, feeds)] == [("a",)]


def test_a_network_without_quantized_steps_has_no_wrong_ones():
    network, data = chain()
    assert wrong_steps(network, network, data.read(np.arange(1))) == ()
