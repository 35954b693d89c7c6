"""Torch models: built, unpickled, exported as ONNX, saved as programs; others refused."""

import copy
import importlib

import numpy as np
import onnx_ir as ir
import pytest
import torch
from branches import FEEDS, X, make_branches
from conv_cases import difference, drawn_chain
from torch import nn

from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.survey import survey
from converter.models import export as torch_export
from converter.models import factory
from converter.models import match as torch_network
from converter.models.program import load_program, save_program


class Branching(nn.Module):
    """Which way it goes depends on the numbers: torch cannot export it."""

    def __init__(self):
        """Make the one layer."""
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        """Convolve ``x`` or leave it."""
        return self.conv(x) if x.sum() > 0 else x


@pytest.fixture(scope="module")
def model():
    return make_branches()


@pytest.fixture(scope="module")
def network(model):
    return torch_export.export(model, FEEDS)


@pytest.fixture(scope="module")
def layers(model, network):
    return torch_network.match(model, survey(network, FEEDS), FEEDS)


def torch_outputs(model, x=X):
    with torch.no_grad():
        return [t.numpy() for t in torch_export.flat_outputs(model(torch.from_numpy(x)))]


def onnx_outputs(network, x=X):
    return list(onnx_network.run(onnx_network.open_session(network), {"x": x}).values())


def test_the_export_computes_what_the_model_computes(model, network):
    found = onnx_outputs(network)
    wanted = torch_outputs(copy.deepcopy(model).eval())
    assert len(found) == len(wanted) == 12
    for ours, theirs in zip(found, wanted):
        assert difference(ours, theirs) < 1e-5


def test_the_export_leaves_the_model_in_training(model, network):
    assert all(module.training for module in model.modules())
    assert int(model.branches["normed"][1].num_batches_tracked) == 0


def test_the_export_names_no_path_of_this_machine(network):
    assert b".py" not in ir.to_proto(network).SerializeToString()


def test_the_batch_axis_of_the_export_is_free(network):
    (item,) = onnx_network.inputs(network)
    assert (item.name, item.shape, item.dtype) == ("x", (None, 4, 9, 8), np.float32)
    assert [len(output) for output in onnx_outputs(network, X[:2])] == [2] * 12


def test_a_saved_program_runs_without_its_class(model, layers, tmp_path):
    chains = {layer.name: drawn_chain(layer.conv, "spatial", 0.5) for layer in layers}
    module = torch_network.apply(model, layers, chains).eval()
    save_program(module, {"x": (1, 4, 9, 8)}, tmp_path / "model.pt2")
    program = load_program(tmp_path / "model.pt2")
    for ours, theirs in zip(torch_outputs(program), torch_outputs(module), strict=True):
        assert difference(ours, theirs) < 1e-5


def test_a_model_that_torch_cannot_save_is_refused(tmp_path):
    with pytest.raises(ConverterError, match=r"torch cannot save the converted model as m\.pt2: "):
        save_program(Branching().eval(), {"x": (1, 4, 9, 8)}, tmp_path / "m.pt2")


@pytest.mark.parametrize("shape", [(1, 3, 9, 8), (1, 4), (1, 4, 2, 2)])
def test_inputs_that_the_model_cannot_take_are_refused(shape, model):
    with pytest.raises(ConverterError, match=r"does not run on inputs of shape \{'x': \(1, "):
        torch_export.export(model, {"x": np.zeros(shape, np.float32)})


def test_too_few_inputs_are_refused():
    with pytest.raises(ConverterError, match="The model does not run on inputs of shape"):
        torch_export.export(nn.Bilinear(2, 2, 2), {"x": np.zeros((1, 2), np.float32)})


def test_a_model_that_torch_cannot_export_is_refused():
    with pytest.raises(ConverterError, match="torch cannot export the model to ONNX") as caught:
        torch_export.export(Branching().eval(), FEEDS)
    assert "\x1b" not in str(caught.value)
    assert "Next steps" not in str(caught.value)


def test_the_outputs_of_a_model_are_flattened_in_order():
    a, b, c = (torch.full((1,), float(n)) for n in range(3))
    assert torch_export.flat_outputs({"z": a, "y": [b, (c,)]}) == [a, b, c]
    assert torch_export.flat_outputs(a) == [a]
    assert torch_export.flat_outputs(None) == []


def test_the_inputs_of_a_model_are_what_forward_demands():
    class Net(nn.Module):
        def forward(self, image, mask, scale=1.0, *rest, flag=False, **options):
            return image

    assert torch_export.input_names(Net()) == ("image", "mask")
    assert torch_export.input_names(nn.Sequential(nn.ReLU())) == ("input",)


def build(spec, arguments=None, checkpoint=None):
    return factory.build(spec, arguments or {}, checkpoint)[0]


def test_a_factory_is_called_with_its_arguments(workplace):
    model = build("toy:build", {"width": 5})
    assert model.conv1.out_channels == 5
    assert not model.training


def test_a_factory_is_filled_from_a_checkpoint(workplace):
    wanted = {name: tensor + 1 for name, tensor in build("toy:build").state_dict().items()}
    torch.save(wanted, workplace / "weights.pt")
    found = build("toy:build", checkpoint=workplace / "weights.pt").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("toy", r"must be written package\.module:name"),
        ("toy:", r"must be written package\.module:name"),
        (":build", r"must be written package\.module:name"),
        ("no_such_module:build", "module 'no_such_module' cannot be imported: ModuleNotFound"),
        ("toy.inner:build", r"module 'toy\.inner' cannot be imported: ModuleNotFound"),
        ("broken:build", "module 'broken' cannot be imported: SyntaxError"),
        ("raising:build", "module 'raising' cannot be imported: RuntimeError: not today"),
        ("toy:missing", "toy has no callable named 'missing'"),
        ("toy:__name__", "toy has no callable named '__name__'"),
        ("toy:fails", "Factory 'toy:fails' failed: RuntimeError: no such backbone"),
        ("toy:number", "Factory 'toy:number' gave a int, not an nn.Module"),
    ],
)
def test_a_factory_that_gives_no_model_is_refused(spec, sentence, workplace):
    (workplace / "broken.py").write_text("def build(:\n")
    (workplace / "raising.py").write_text("raise RuntimeError('not today')\n")
    with pytest.raises(ConverterError, match=sentence):
        build(spec)


def test_a_factory_in_a_file_of_another_folder_finds_its_neighbours(workplace):
    folder = workplace / "nets"
    folder.mkdir()
    (folder / "toy.py").write_text("from neighbour import build as build\n")
    (folder / "neighbour.py").write_text("import torch\ndef build():\n    return torch.nn.ReLU()\n")
    assert type(build(f"{folder}/toy.py:build")) is nn.ReLU
    assert type(build("nets/toy.py:build")) is nn.ReLU
    assert [type(build(spec)).__name__ for spec in ("toy.py:build", "toy:build")] == ["Toy"] * 2


@pytest.mark.parametrize("spec", ["converter:build", "converter.py:build", "onnx:build"])
def test_a_file_with_the_name_of_a_package_is_the_user_s(spec, workplace):
    text = "import torch\ndef build():\n    return torch.nn.ReLU()\n"
    for name in ("converter.py", "onnx.py"):
        (workplace / name).write_text(text)
    assert type(build(spec)) is nn.ReLU
    assert importlib.import_module("converter.errors").ConverterError is ConverterError


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("nets/none.py:build", r"there is no file nets/none\.py"),
        ("raising.py:build", r"'raising\.py' cannot be imported: RuntimeError: not today"),
        ("toy.py:missing", r"toy\.py has no callable named 'missing'"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused(spec, sentence, workplace):
    (workplace / "raising.py").write_text("raise RuntimeError('not today')\n")
    for _ in range(2):
        with pytest.raises(ConverterError, match=sentence):
            build(spec)


def test_arguments_that_the_factory_does_not_take_are_refused(workplace):
    with pytest.raises(ConverterError, match=r"failed: TypeError: .* 'depth'"):
        build("toy:build", {"depth": 3})


def test_a_checkpoint_of_another_width_is_refused(workplace):
    torch.save(build("toy:build", {"width": 4}).state_dict(), workplace / "weights.pt")
    with pytest.raises(ConverterError, match=r"does not fit the model: .* of another shape"):
        build("toy:build", checkpoint=workplace / "weights.pt")


def test_a_pickled_module_is_read_when_trusted(tmp_path):
    path = tmp_path / "net.pt"
    torch.save(nn.Sequential(nn.Conv2d(4, 6, 3)), path)
    model = factory.unpickle(path, trust_pickle=True)
    assert type(model[0]) is nn.Conv2d
    assert not model.training


def test_a_pickled_module_is_refused_without_trust(tmp_path):
    torch.save(nn.Conv2d(4, 6, 3), tmp_path / "net.pt")
    with pytest.raises(ConverterError, match="or pass --trust-pickle to unpickle"):
        factory.unpickle(tmp_path / "net.pt", trust_pickle=False)


@pytest.mark.parametrize("trust", [True, False])
def test_a_missing_pickle_is_refused(trust, tmp_path):
    with pytest.raises(ConverterError, match="does not exist"):
        factory.unpickle(tmp_path / "net.pt", trust_pickle=trust)


def test_a_state_dict_is_no_pickled_module(tmp_path):
    torch.save(nn.Conv2d(4, 6, 3).state_dict(), tmp_path / "net.pt")
    with pytest.raises(ConverterError, match=r"holds a OrderedDict, not a pickled nn\.Module"):
        factory.unpickle(tmp_path / "net.pt", trust_pickle=True)
