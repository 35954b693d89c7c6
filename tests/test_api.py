"""The Python interface: public names, native values, typed choices, errors in Python's words."""

import copy
import inspect

import numpy as np
import onnx
import pytest
import torch
from networks import make_net, noise, work_in

import converter
from converter.errors import ConverterError
from converter.models.factory import find_callable
from converter.options import Options

X = noise(24, 3, 8, 8, seed=1)
LABELS = np.arange(24) % 4
TRAINING = {"train": X, "finetune": 1}
BY_HAND = {"form": ("conv0=channel", "conv1=spatial"), "rank": ("conv0=2", "conv1=0.5")}


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory):
    with work_in(tmp_path_factory.mktemp("api")) as here:
        make_net(here / "net.onnx", channels=(3, 8, 8))
        make_net(here / "other.onnx", channels=(3, 8), size=6)
        np.savez("calib.npz", x=X)
        np.savez("labelled.npz", x=X, y=LABELS)
        yield here


@pytest.fixture(scope="module")
def by_file(place):
    """Converted by hand, with every value as the command line gives it."""
    return converter.convert("net.onnx", calib="calib.npz", eval="labelled.npz", **BY_HAND)


def kernels(result):
    return {i.name: i.raw_data for i in result.model.graph.initializer}


# names


def test_dir_lists_the_public_names():
    assert sorted(dir(converter)) == sorted([*converter.__all__, "__version__"])
    assert not [n for n in converter.__all__ if n.startswith("_")]
    assert len(set(converter.__all__)) == len(converter.__all__)


@pytest.mark.parametrize("name", converter.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(converter, name)
    assert name == "FORMS" or inspect.getdoc(value)
    assert getattr(converter, name) is value


def test_all_public_names_can_be_imported_at_once():
    names = {}
    exec("from converter import *", names)
    assert set(converter.__all__) <= set(names)


def test_the_version_is_that_of_the_package():
    assert converter.__version__
    assert converter.__version__.split(".")[0].isdigit()


@pytest.mark.parametrize("name", ["covert", "Convert", "_private", "pipeline_"])
def test_a_name_that_is_not_there_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'converter' has no attribute '{name}'"):
        getattr(converter, name)


# values of Python's own types

NATIVE = {
    "array": X,
    "tensor": torch.from_numpy(X),
    "dictionary": {"x": X},
    "tuple": (X,),
    "inputs and labels": (X, LABELS),
    "list of batches": [X[:16], X[16:]],
    "list of tuples": [(X[:16], LABELS[:16]), (X[16:], LABELS[16:])],
    "DataLoader": torch.utils.data.DataLoader(list(zip(X, LABELS)), batch_size=5),
}


@pytest.mark.parametrize("kind", NATIVE)
def test_sample_inputs_in_memory_give_what_their_file_gives(by_file, kind):
    result = converter.convert("net.onnx", calib=NATIVE[kind], **BY_HAND)
    assert result.plan == by_file.plan
    assert kernels(result) == kernels(by_file)


@pytest.mark.parametrize(
    "labelled",
    [
        (X, LABELS),
        {"x": X, "y": LABELS},
        (torch.from_numpy(X), torch.from_numpy(LABELS)),
        torch.utils.data.DataLoader(list(zip(X, LABELS)), batch_size=7, shuffle=True),
    ],
    ids=["tuple", "dictionary", "tensors", "DataLoader"],
)
def test_labelled_inputs_in_memory_give_the_accuracy_of_their_file(by_file, labelled):
    result = converter.convert("net.onnx", calib=X, eval=labelled, **BY_HAND)
    for name in ("original", "converted"):
        found, wanted = (getattr(r.comparison, name).accuracy for r in (result, by_file))
        assert found == wanted is not None


@pytest.mark.parametrize("kind", ["path", "text", "ModelProto"])
def test_a_network_in_memory_gives_what_its_file_gives(by_file, place, kind):
    path = place / "net.onnx"
    model = {"path": path, "text": str(path), "ModelProto": onnx.load(path)}[kind]
    before = model.SerializeToString() if kind == "ModelProto" else None
    result = converter.convert(model, calib=X, **BY_HAND)
    assert result.plan == by_file.plan and kernels(result) == kernels(by_file)
    if kind == "ModelProto":
        assert model.SerializeToString() == before
        assert isinstance(result.model, onnx.ModelProto)


EXAMPLES = {
    "array": X[:1],
    "tensor": torch.from_numpy(X[:1]),
    "tuple": (X[:1],),
    "dictionary": {"x": X[:1]},
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_an_example_gives_the_input_shapes(kind):
    result = converter.convert("net.onnx", EXAMPLES[kind], form="conv0=channel", rank=2)
    assert dict(result.plan.input_shapes) == {"x": (1, 3, 8, 8)}


@pytest.mark.parametrize(
    ("native", "text"),
    [
        ({"input_shape": (1, 3, 8, 8)}, {"input_shape": "1,3,8,8"}),
        ({"input_shape": {"x": (1, 3, 8, 8)}}, {"input_shape": "x:1,3,8,8"}),
        ({"rank": 2}, {"rank": ("2",)}),
        ({"rank": 0.5}, {"rank": ("0.5",)}),
        ({"rank": (0.5, 0.25)}, {"rank": ("0.5,0.25",)}),
        ({"mean": (0.5, 0.25)}, {"mean": "0.5,0.25"}),
        ({"std": 0.5}, {"std": "0.5"}),
        ({"factory_args": {"width": 4}}, {"factory_args": '{"width": 4}'}),
        ({"form": "spatial"}, {"form": ("spatial",)}),
        ({"keep": ["conv0"]}, {"keep": ("conv0",)}),
        ({"target_speedup": 2}, {"target_speedup": 2.0}),
        ({"finetune": 2}, {"epochs": 2}),
    ],
)
def test_native_values_are_those_of_the_command_line(native, text):
    assert Options.of(**native) == Options.of(**text)


# typed choices

LayerForm = converter.LayerForm


@pytest.mark.parametrize(
    "layers",
    [
        {"conv0": LayerForm("channel", 2), "conv1": LayerForm("spatial", rank=0.5)},
        {"conv0": ("channel", 2), "conv1": ("spatial", 0.5)},
        {"conv1": LayerForm("spatial", 0.5), "conv0": LayerForm("channel", rank=2), "fc": None},
    ],
    ids=["LayerForm", "pairs", "None keeps"],
)
def test_typed_choices_are_those_of_the_command_line(by_file, layers):
    result = converter.convert("net.onnx", calib=X, layers=layers)
    assert result.plan.chosen() == by_file.plan.chosen()
    assert kernels(result) == kernels(by_file)


@pytest.mark.parametrize(
    ("typed", "texts"),
    [
        ({"conv*": LayerForm("channel", 3)}, {"form": "conv*=channel", "rank": "conv*=3"}),
        ({"conv1": LayerForm("tucker", (0.5, 4))}, {"form": "conv1=tucker", "rank": "conv1=0.5,4"}),
        ({"conv1": "decoupled"}, {"form": "conv1=decoupled"}),
        ({"fc": LayerForm("channel", 2)}, {"form": "fc=channel", "rank": "fc=2"}),
    ],
)
def test_patterns_pairs_and_defaults_are_those_of_the_command_line(typed, texts):
    plans = [
        converter.convert("net.onnx", **choice).plan.chosen()
        for choice in ({"layers": typed}, texts)
    ]
    assert plans[0] == plans[1] and plans[0]


# errors


def refusal(call):
    with pytest.raises(ConverterError) as refused:
        call()
    return str(refused.value)


def converting(**values):
    return lambda: converter.convert("net.onnx", **values)


REFUSALS = {
    "max_drop needs sample inputs; give calib.": converting(max_drop=0.01),
    "Invalid value 1.5 for max_drop.": converting(max_drop=1.5),
    "Invalid value 'x' for max_error.": converting(max_error="x"),
    "int8 needs sample inputs; give calib.": converting(int8=True),
    "frontier needs a search; give calib or a budget, and leave out form, rank": converting(
        frontier=True
    ),
    "finetune needs inputs to train on; give train.": converting(finetune=1),
    "schedule needs a budget (such as max_macs) and finetune": converting(schedule=2),
    "resume needs finetune or reconstruct, and the cache.": converting(resume=True),
    "leave out form, rank and plan, or max_macs.": converting(max_macs=0.5, rank=2),
    "plan says what happens to each layer; leave out form, rank": converting(plan="p", keep="a"),
    "stages is an option of form lvh.": converting(stages=2),
    "form: the network has no layer 'conv9'": converting(form="conv9=channel"),
    "keep: the network has no layer 'conv9'": converting(form="channel", keep="conv9"),
    "layers: the network has no layer 'conv9'": converting(layers={"conv9": "channel"}),
    "There is no form 'winograd'": converting(layers={"conv0": "winograd"}),
    "input_shape z:1,3: there is no input 'z'": converting(input_shape={"z": (1, 3)}),
    "use solver flatconv": converting(form="conv0=lvh2", solver="tensorly"),
    "There is no option 'max_dorp'. Did you mean 'max_drop'?": converting(max_dorp=0.1),
    "There is no option 'eval_data'.": converting(eval_data="x.npz"),
    "There is no option 'finetun'. Did you mean 'finetune'?": converting(finetun=1),
    "There is no option 'treads'. Did you mean 'threads'?": lambda: converter.compare(
        "net.onnx", "other.onnx", treads=2
    ),
    "Invalid value 0 for threads.": lambda: converter.compare("net.onnx", "net.onnx", threads=0),
    "There is no option 'learning_rate'": lambda: converter.finetune("out", learning_rate=1),
    "Invalid value 0.0 for lr.": lambda: converter.finetune("out", train=X, epochs=1, lr=0.0),
    "is not an output folder of flatconv": lambda: converter.load("nowhere"),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_refusals_speak_python(place, by_file, sentence):
    if not (place / "out").exists():
        by_file.save(place / "out")
    told = refusal(REFUSALS[sentence])
    assert sentence in told
    assert "--" not in told and "\n" not in told


def test_the_reason_of_a_report_speaks_python(place):
    result = converter.convert("net.onnx", form="spatial", keep="conv*")
    assert result.report.reason == (
        "No layer was converted: it is a linear layer; name it to convert it (form fc=channel); "
        "the user keeps it."
    )


# the model that is given


def bits(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_the_given_torch_model_is_not_changed(place):
    model = find_callable("toy:build", "Factory")()
    model.norm.eval()
    twin = copy.deepcopy(model)
    result = converter.convert(model, calib=X, form="conv2=channel", rank=2, **TRAINING)
    assert bits(model) == bits(twin)
    assert [m.training for m in model.modules()] == [m.training for m in twin.modules()]
    assert [type(m) for m in model.modules()] == [type(m) for m in twin.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    shared = {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in result.model.parameters()
    }
    assert not shared
    assert dict(result.origin) == {}
