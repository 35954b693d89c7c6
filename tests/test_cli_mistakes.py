"""Mistakes on the command line: status 2, one sentence, and nothing is written."""

import pytest
from cli_files import assert_refused, write_files
from networks import flatconv, work_in


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder of this module's tests, with sound and broken files of every kind."""
    with work_in(tmp_path_factory.mktemp("cli")) as folder:
        write_files(folder)
        yield folder


@pytest.fixture
def out(place, tmp_path):
    """A folder that does not exist yet."""
    return tmp_path / "out"


MODELS = {
    "missing file": ("missing.onnx", "missing.onnx does not exist"),
    "folder": ("folder.onnx", "folder.onnx is a folder; name an .onnx file"),
    "empty": ("empty.onnx", "empty.onnx is not a valid ONNX file"),
    "text": ("text.onnx", "text.onnx is not a valid ONNX file"),
    "truncated": ("truncated.onnx", "truncated.onnx is not a valid ONNX file"),
    "text named .pt": ("text.pt", "text.pt is not an ONNX file; name a factory"),
    "pickled module": ("module.pt", "pass --trust-pickle"),
    "unknown module": ("nowhere:build", "module 'nowhere' cannot be imported"),
    "unknown factory": ("toy:bild", "toy has no callable named 'bild'"),
    "nameless factory": ("toy:", "must be written package.module:name"),
    "factory that raises": (
        "toy:fails",
        "Factory 'toy:fails' failed: RuntimeError: no such backbone",
    ),
    "factory of a number": ("toy:number", "gave a int, not an nn.Module"),
    "no input shape": (
        "toy:build",
        "input 'x' is not known; give sample inputs, or --input-shape x:1,3,224,224, on which it "
        "runs",
    ),
    "free sizes": ("free.onnx", "or --input-shape x:1,3,224,224, on which it runs"),
}
OPTIONS = {
    "shape of other channels": ("--input-shape 1,4,8,8", "Input 'x' takes shape ?,3,8,8"),
    "shape of fewer axes": ("--input-shape 1,3,8", "Input 'x' takes shape ?,3,8,8"),
    "shape of words": ("--input-shape 1x3x8x8", "--input-shape: Write a shape as [NAME:]1,3,32,32"),
    "shape of another input": ("--input-shape z:1,3,8,8", "there is no input 'z'"),
    "rank 0": ("--rank 0", "Rank '0' must be above 0"),
    "rank of words": ("--rank many", "Rank 'many' is not a number"),
    "rank too large": ("--form channel --rank conv1=17", "Layer conv1: rank 17 does not fit"),
    "unknown form": ("--form flat", "There is no form 'flat'; use one of flattened"),
    "form of an unknown layer": ("--form conv2=channel", "no layer 'conv2'"),
    "rank of an unknown layer": ("--rank conv2=4", "no layer 'conv2'"),
    "only an unknown layer": ("--only conv2", "no layer 'conv2'; it has, for example, conv"),
    "keep an unknown layer": ("--keep conv2", "no layer 'conv2'; it has, for example, conv"),
    "missing plan": ("--plan missing.json", "Plan missing.json cannot be read"),
    "damaged plan": ("--plan plan.json", "Plan plan.json cannot be used"),
    "missing data": ("--calib missing.npz", "Data missing.npz does not exist"),
    "data of another shape": ("--calib large.npz", "3,9,9"),
    "evaluation data of another shape": ("--rank conv1=4 --eval large.npz", "shape 3,9,9"),
    "data of another input": ("--calib z.npz", "it lacks the network's input 'x'"),
    "damaged data": ("--calib text.npz", "text.npz is not a sound .npz file"),
    "images of another size": ("--calib images --resize 9 --crop 9", "3,9,9"),
    "images and words for means": (
        "--calib images --mean half",
        "--mean: Write numbers such as 0.485,0.456,0.406",
    ),
    "unknown evaluation": ("--evaluate score:shar", "score has no callable named 'shar'"),
    "unknown provider": ("--rank conv1=4 --provider NoProvider", "'NoProvider' is not available"),
    "unknown option": ("--from channel", "--from"),
    "words for a number": ("--threads many", "--threads"),
    "unknown channel order": ("--channels grb", "--channels"),
    "no thread": ("--threads 0", "--threads. Must be >= 1"),
    "no sample": ("--samples 0", "--samples. Must be >= 1"),
    "no learning": ("--lr 0", "--lr. It must be a number above 0"),
    "tuning without data": ("--finetune 1", "give --train"),
    "a schedule without a budget": ("--schedule 2 --finetune 2", "--schedule needs a budget"),
    "resuming what was not begun": ("--resume", "--resume needs --finetune"),
    "an empty batch": ("--train-batch 0", "--train-batch. Must be >= 1"),
    "a loader without examples": (
        "--calib loaders:empty",
        "Data loaders:empty yields nothing; give a loader with examples",
    ),
    "a loader of less than a batch": (
        "--calib loaders:only_a_part_of_a_batch",
        "loaders:only_a_part_of_a_batch yields nothing",
    ),
    "a loader without labelled examples": (
        "--rank conv1=4 --eval loaders:empty",
        "Data loaders:empty yields nothing",
    ),
    "a generator without batches": ("--calib loaders:nothing", "loaders:nothing yields nothing"),
    "tensorly for a form that it lacks": (
        "--solver tensorly --form lvh2",
        "tensorly cannot decompose a kernel into the form lvh2; use --solver flatconv",
    ),
    "tensorly for two stages of one layer": (
        "--solver tensorly+refine --form conv1=lvh --stages 2",
        "tensorly cannot decompose a kernel into the form lvh2; use --solver flatconv",
    ),
    "no loss": ("--finetune 1 --train data.npz --loss nowhere:loss", "'nowhere' cannot be"),
}
FACTORIES = {
    "missing checkpoint": ("--checkpoint missing.pt", "missing.pt does not exist"),
    "folder for a checkpoint": ("--checkpoint images", "images is a folder"),
    "empty checkpoint": ("--checkpoint empty.pt", "empty.pt is empty"),
    "truncated checkpoint": ("--checkpoint truncated.pt", "truncated.pt is truncated or damaged"),
    "text checkpoint": ("--checkpoint text.pt", "Checkpoint text.pt is"),
    "text safetensors": ("--checkpoint text.safetensors", "not a sound safetensors file"),
    "NaN weights": ("--checkpoint nan.pt", "nan.pt holds NaN or infinite values in fc.bias"),
    "other model's weights": ("--checkpoint narrow.pt", "conv1.weight (4x3x3x3 in the file, 8x"),
    "pickled code": ("--checkpoint module.pt", "pass --trust-pickle"),
    "arguments that are no JSON": ("--factory-args width=8", "--factory-args: It is not JSON"),
    "arguments that are a list": ("--factory-args [8]", "--factory-args: It must be a JSON object"),
    "unknown argument": ('--factory-args {"depth":8}', "unexpected keyword argument 'depth'"),
    "shape of other channels": ("--input-shape 1,4,8,8", "does not run on inputs of shape"),
}


def check_refusal(out, *arguments, words):
    assert_refused(flatconv("convert", *arguments, "-o", out, "-q"), words)
    assert not out.exists()
    assert not list(out.parent.iterdir())


@pytest.mark.parametrize(("model", "words"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_used(out, model, words):
    check_refusal(out, model, words=words)


@pytest.mark.parametrize(("options", "words"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_do_not_fit(out, options, words):
    check_refusal(out, "net.onnx", *options.split(), words=words)


@pytest.mark.parametrize(("options", "words"), FACTORIES.values(), ids=FACTORIES)
def test_factories_that_cannot_be_filled(out, options, words):
    shape = () if "--input-shape" in options else ("--input-shape", "1,3,8,8")
    check_refusal(out, "toy:build", *options.split(), *shape, words=words)


def test_convert_needs_an_output_folder(place):
    assert_refused(flatconv("convert", "net.onnx", "-q"), "Name the output folder with -o")


@pytest.mark.parametrize("folder", ["net.onnx", "net.onnx/out", "net.onnx/deep/out"])
def test_a_file_cannot_hold_the_output(place, folder):
    content = (place / "net.onnx").read_bytes()
    arguments = ("convert", "net.onnx", "-o", folder, "--form", "channel", "-q")
    assert_refused(flatconv(*arguments), "net.onnx")
    assert (place / "net.onnx").read_bytes() == content


def test_foreign_files_survive(place):
    arguments = ("convert", "net.onnx", "-o", "foreign", "--form", "channel", "-q")
    assert_refused(flatconv(*arguments), "foreign holds other files (thesis.tex)")
    assert [path.name for path in (place / "foreign").iterdir()] == ["thesis.tex"]
    assert (place / "foreign" / "thesis.tex").read_text() == "mine"


def test_an_earlier_output_survives_a_mistake(out):
    arguments = ("convert", "net.onnx", "-o", out, "--form", "channel", "-q")
    assert flatconv(*arguments)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert_refused(flatconv(*arguments, "--rank", "0"), "must be above 0")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("compare net.onnx", "at least two"),
        ("compare net.onnx missing.onnx", "missing.onnx does not exist"),
        ("compare net.onnx text.onnx", "text.onnx is not a valid ONNX file"),
        ("compare net.onnx other.onnx --data large.npz", "shape 3,9,9"),
        ("compare net.onnx other.onnx --json missing/a.json", "cannot be written"),
        ("compare net.onnx other.onnx --html missing/a.html", "cannot be written"),
        ("finetune images --train data.npz --epochs 1", "not an output folder of flatconv"),
        ("finetune images --train data.npz --epochs 0", "Give --epochs or --reconstruct"),
        ("convrt net.onnx", "convrt"),
    ],
)
def test_other_commands_refuse_too(place, arguments, words):
    before = sorted(place.rglob("*"))
    assert_refused(flatconv(*arguments.split(), "-q"), words)
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [("inspect", "net.onnx"), ("compare", "net.onnx", "other.onnx")]
)
def test_an_unexpected_error_is_one_sentence_too(place, monkeypatch, command):
    def surprise(model):
        raise ZeroDivisionError("nobody saw this coming")

    monkeypatch.setattr("converter.graph.network.inputs", surprise)
    outcome = flatconv(*command)
    assert_refused(outcome, "unexpected ZeroDivisionError: nobody saw this coming", "-v")
    status, _, err = flatconv(*command, "-v")
    assert status == 2 and "Traceback" in err and err.splitlines()[-1] == outcome[2].strip()
