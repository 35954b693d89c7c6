"""Data: what can be read, what becomes of it, and what is refused."""

import random
import zipfile

import numpy as np
import pytest
import torch
from helpers import noise
from PIL import Image

from converter.data import readers
from converter.data.data import Input, conform, from_arrays, random_data
from converter.data.images import Preprocessing
from converter.errors import ConverterError
from converter.models.factory import find_callable
from converter.options import Options

PLAIN = Preprocessing()


def inputs_named(names):
    return [Input(name, (), np.dtype(np.float32)) for name in names]


def read(source, names=("x",), images=PLAIN):
    return readers.read(str(source), inputs_named(names), images, find_callable)


def everything(data):
    return data.read(np.arange(data.count))


def npz(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def by_class(tmp_path):
    """Two images of cats and one of a dog, 6 wide and 4 high, and what they show."""
    folder = tmp_path / "images"
    shown = pixels(3, 4, 6, 3)
    for name, image in zip(("dog/a.png", "cat/c.png", "cat/b.png"), shown):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return folder, shown


# npz


def test_an_array_x_is_the_first_input(tmp_path):
    x, mask, labels = noise(5, 3, 4, 4), noise(5, 7, seed=1), np.arange(5) % 2
    data = read(npz(tmp_path, x=x, mask=mask, y=labels), ["image", "mask"])
    assert data.count == 5
    assert list(everything(data)) == ["image", "mask"]
    np.testing.assert_array_equal(everything(data)["image"], x)
    np.testing.assert_array_equal(data.read(np.array([3, 1]))["mask"], mask[[3, 1]])
    np.testing.assert_array_equal(data.labels, labels)


def test_an_array_of_the_input_s_name_goes_before_x(tmp_path):
    data = read(npz(tmp_path, x=noise(2, 3), image=noise(2, 3, seed=1)), ["image"])
    np.testing.assert_array_equal(everything(data)["image"], noise(2, 3, seed=1))


def test_there_are_no_labels_without_y(tmp_path):
    assert read(npz(tmp_path, x=noise(2, 3))).labels is None


def test_an_input_named_y_is_not_the_labels(tmp_path):
    data = read(npz(tmp_path, x=noise(2, 3), y=noise(2, 3, seed=1)), ["x", "y"])
    assert data.labels is None
    np.testing.assert_array_equal(everything(data)["y"], noise(2, 3, seed=1))


def test_uint8_images_are_scaled_and_normalised(tmp_path):
    x = pixels(4, 5, 6, 3)
    images = Preprocessing.of(Options.of(mean="0.5,0.25,0.125", std="0.5,1,2"))
    found = everything(read(npz(tmp_path, x=x), images=images))["x"]
    wanted = (x / 255 - [0.5, 0.25, 0.125]) / [0.5, 1, 2]
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, wanted.transpose(0, 3, 1, 2), atol=1e-6)


def test_one_mean_serves_all_channels(tmp_path):
    x = pixels(2, 4, 4, 3)
    found = everything(read(npz(tmp_path, x=x), images=Preprocessing(mean=(0.5,), std=(0.25,))))[
        "x"
    ]
    np.testing.assert_allclose(found, (x / 255 - 0.5).transpose(0, 3, 1, 2) / 0.25, atol=1e-6)


def test_blue_comes_first_after_normalising(tmp_path):
    x = pixels(2, 4, 4, 3)
    images = Preprocessing.of(Options.of(channels="bgr", mean="0.1,0.2,0.3"))
    found = everything(read(npz(tmp_path, x=x), images=images))["x"]
    wanted = (x / 255 - [0.1, 0.2, 0.3])[..., ::-1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_channels_stay_last_for_nhwc(tmp_path):
    x = pixels(2, 4, 5, 3)
    images = Preprocessing.of(Options.of(layout="nhwc"))
    found = everything(read(npz(tmp_path, x=x), images=images))["x"]
    np.testing.assert_allclose(found, x / 255, atol=1e-6)


def test_float_arrays_are_left_as_they_are(tmp_path):
    images = Preprocessing(mean=(0.5,), std=(0.25,), bgr=True, nhwc=True)
    found = everything(read(npz(tmp_path, x=noise(2, 3, 4, 4)), images=images))["x"]
    np.testing.assert_array_equal(found, noise(2, 3, 4, 4))


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "data.npz").write_text("x,y\n1,2\n")
    with pytest.raises(ConverterError, match=r"data\.npz is not a sound \.npz file"):
        read(tmp_path / "data.npz")


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_truncated_npz_is_refused(tmp_path, kept):
    path = npz(tmp_path, x=noise(20, 3, 8, 8))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConverterError, match="not a sound"):
        read(path)


def test_a_damaged_npz_is_refused(tmp_path):
    path = npz(tmp_path, x=noise(20, 3, 8, 8))
    content = bytearray(path.read_bytes())
    content[3000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ConverterError, match="not a sound"):
        read(path)


def test_pickled_arrays_are_refused(tmp_path):
    path = npz(tmp_path, x=np.array([{"run": "code"}, None], object))
    with pytest.raises(ConverterError, match="not a sound"):
        read(path)


def test_what_is_no_array_in_an_archive_is_passed_by(tmp_path):
    path = npz(tmp_path, z=noise(20, 3, 8, 8))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x", b"no array")
    with pytest.raises(ConverterError, match="it lacks the network's input"):
        read(path)


def test_a_missing_input_is_named(tmp_path):
    path = npz(tmp_path, x=noise(2, 3), depth=noise(2, 3))
    with pytest.raises(ConverterError, match=r"depth, x; it lacks the network's input 'mask'"):
        read(path, ["image", "mask"])


@pytest.mark.parametrize("count", [0, 2, 4])
def test_inputs_must_have_equally_many_examples(tmp_path, count):
    path = npz(tmp_path, x=noise(3, 2), mask=noise(count, 2))
    with pytest.raises(ConverterError, match="same number of examples"):
        read(path, ["x", "mask"])


def test_no_examples_are_refused(tmp_path):
    with pytest.raises(ConverterError, match="above 0"):
        read(npz(tmp_path, x=noise(0, 3, 4, 4)))


@pytest.mark.parametrize(
    "labels",
    [np.zeros(2, int), np.array(1), np.zeros((4, 3)), np.array(["a", "b", "c"])],
    ids=["too few", "one for all", "too many", "words"],
)
def test_labels_must_be_numbers_for_each_example(tmp_path, labels):
    with pytest.raises(ConverterError, match=r"labels y of .* must be numbers for each of 3"):
        read(npz(tmp_path, x=noise(3, 2), y=labels))


@pytest.mark.parametrize(
    "labels", [np.arange(3.0), np.arange(3)[:, None], pixels(3, 4, 4)], ids=["f", "axes", "masks"]
)
def test_labels_that_are_no_classes_come_with_their_examples(tmp_path, labels):
    x = pixels(3, 4, 4, 3)
    data = conform(
        read(npz(tmp_path, x=x, y=labels)), {"x": (None, 3, 4, 4)}, {"x": np.dtype(np.float16)}
    )
    if labels.ndim == 3:
        assert data.labels is None
    else:
        assert data.labels.tolist() == [0, 1, 2]
    feeds, told = data.take(np.array([2, 0])).batch(np.arange(2), np.random.default_rng(0))
    np.testing.assert_array_equal(told, labels[[2, 0]])
    # Shifted images would no longer show what such labels say.
    np.testing.assert_array_equal(feeds["x"], data.read(np.array([2, 0]))["x"])
    feeds, told = data.unlabelled().batch(np.arange(3), np.random.default_rng(0))
    assert told is None and not np.array_equal(feeds["x"], everything(data)["x"])


def test_classes_come_with_examples_that_are_changed(tmp_path):
    data = read(npz(tmp_path, x=pixels(3, 4, 4, 3), y=np.array([2, 0, 1])))
    feeds, told = data.take(np.array([2, 0])).batch(np.arange(2), np.random.default_rng(0))
    np.testing.assert_array_equal(told, [1, 2])
    assert not np.array_equal(feeds["x"], data.read(np.array([2, 0]))["x"])
    feeds, told = data.without_augmentation().batch(np.arange(3), np.random.default_rng(0))
    np.testing.assert_array_equal(feeds["x"], everything(data)["x"])
    np.testing.assert_array_equal(told, [2, 0, 1])


@pytest.mark.parametrize("option", ["mean", "std"])
def test_as_many_means_as_channels(tmp_path, option):
    data = read(npz(tmp_path, x=pixels(2, 4, 4, 3)), images=Preprocessing(**{option: (0.5, 0.5)}))
    with pytest.raises(ConverterError, match=f"--{option} has 2 values; the images have 3"):
        everything(data)


def test_means_must_be_numbers():
    with pytest.raises(ConverterError, match=r"Invalid value '0\.5,half' for --mean"):
        Preprocessing.of(Options.of(mean="0.5,half"))


# folders of images


def test_folders_are_classes(by_class):
    folder, shown = by_class
    data = read(folder)
    assert data.labels.tolist() == [0, 0, 1]  # cat/b, cat/c, dog/a
    found = everything(data)["x"]
    np.testing.assert_allclose(found, shown[[2, 1, 0]].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_a_flat_folder_has_no_labels(tmp_path):
    shown = pixels(3, 4, 4, 3)
    for n, image in enumerate(shown):
        Image.fromarray(image).save(tmp_path / f"{n}.PNG")
    (tmp_path / "readme.txt").write_text("not an image")
    data = read(tmp_path)
    assert data.labels is None and data.count == 3
    np.testing.assert_allclose(everything(data)["x"], shown.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_grey_images_become_rgb(tmp_path):
    grey = pixels(4, 4)
    Image.fromarray(grey).save(tmp_path / "a.png")
    found = everything(read(tmp_path))["x"]
    np.testing.assert_allclose(found[0], np.stack([grey] * 3) / 255, atol=1e-6)


def test_the_middle_is_cut_out(by_class):
    folder, shown = by_class
    found = everything(read(folder, images=Preprocessing(crop=2)))["x"]
    np.testing.assert_allclose(found[2], shown[0, 1:3, 2:4].transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize(("crop", "size"), [(None, (8, 12)), (8, (8, 8))])
def test_the_short_side_is_resized(by_class, crop, size):
    folder, _ = by_class
    found = everything(read(folder, images=Preprocessing(resize=8, crop=crop)))["x"]
    assert found.shape == (3, 3, *size)


def test_resizing_keeps_a_flat_colour(tmp_path):
    Image.new("RGB", (9, 5), (255, 102, 0)).save(tmp_path / "a.png")
    found = everything(read(tmp_path, images=Preprocessing(resize=4, crop=4)))["x"]
    wanted = np.broadcast_to(np.array([1, 0.4, 0]).reshape(3, 1, 1), (3, 4, 4))
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)


def test_images_of_several_sizes_are_refused(by_class):
    folder, _ = by_class
    Image.new("RGB", (5, 5)).save(folder / "cat" / "z.png")
    with pytest.raises(ConverterError, match="differ in size; give --resize and --crop"):
        everything(read(folder))


def test_an_unreadable_image_is_named(by_class):
    folder, _ = by_class
    (folder / "cat" / "z.png").write_text("no image")
    with pytest.raises(ConverterError, match=r"z\.png cannot be read"):
        everything(read(folder))


def test_a_truncated_image_is_named(by_class):
    folder, _ = by_class
    Image.fromarray(pixels(40, 40, 3)).save(folder / "cat" / "z.png")
    content = (folder / "cat" / "z.png").read_bytes()
    (folder / "cat" / "z.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConverterError, match=r"z\.png cannot be read"):
        everything(read(folder))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ConverterError, match="holds no images"):
        read(tmp_path)


# module:function

GENERATORS = """
import numpy as np

def batches():
    for n in range(3):
        yield {"x": np.full((2, 4), n, np.float32), "y": np.array([n, n])}

def unlabelled():
    yield {"x": [[1.0, 2.0]]}

def nothing():
    yield from ()

def a_list():
    return [{"x": np.zeros((2, 4))}]

def tuples():
    yield np.zeros((2, 4)), 1

def numbers():
    yield 3

def sizes():
    yield np.zeros((2, 4))
    yield np.zeros((2, 5))

def raises():
    raise RuntimeError("no disk")

def other():
    yield {"image": np.zeros((2, 4))}
"""


@pytest.fixture
def generators(workplace):
    (workplace / "generators.py").write_text(GENERATORS)


def test_a_generator_s_batches_are_joined(generators):
    data = read("generators:batches")
    assert data.count == 6
    np.testing.assert_array_equal(everything(data)["x"][:, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1, 2, 2])


def test_a_function_may_return_a_list_of_batches(generators):
    data = read("generators:a_list")
    assert data.count == 2 and data.labels is None


def test_a_generator_need_not_give_labels(generators):
    data = read("generators:unlabelled")
    assert data.labels is None
    np.testing.assert_array_equal(everything(data)["x"], [[1, 2]])


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nothing", "yields nothing"),
        ("tuples", "batches that differ"),
        ("other", "has arrays image; it lacks the network's input 'x'"),
        ("numbers", "must be a list of batches .* not of int"),
        ("sizes", "batches that differ"),
        ("raises", "failed: RuntimeError: no disk"),
        ("missing", "no callable named 'missing'"),
    ],
)
def test_other_functions_are_refused(generators, name, match):
    with pytest.raises(ConverterError, match=match):
        read(f"generators:{name}")


def test_an_unknown_module_is_refused(workplace):
    with pytest.raises(ConverterError, match="module 'nowhere' cannot be imported"):
        read("nowhere:batches")


@pytest.mark.parametrize("name", ["data.npz", "folder", "data.csv"])
def test_missing_data_is_refused(tmp_path, name):
    with pytest.raises(ConverterError, match=f"{name} does not exist"):
        read(tmp_path / name)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.csv").write_text("1,2\n")
    with pytest.raises(ConverterError, match=r"neither \.npz, a folder of images, nor"):
        read(tmp_path / "data.csv")


# Data


def test_sampling_is_seeded():
    data = from_arrays({"x": np.arange(100), "y": np.arange(100)}, "numbers")
    first, again, other = (data.sample(20, seed) for seed in (0, 0, 1))
    chosen = everything(first)["x"]
    assert first.count == 20 and len(set(chosen)) == 20
    np.testing.assert_array_equal(chosen, everything(again)["x"])
    assert not np.array_equal(chosen, everything(other)["x"])
    np.testing.assert_array_equal(first.labels, chosen)


def test_sampling_takes_what_there_is():
    data = from_arrays({"x": np.arange(5)}, "numbers")
    np.testing.assert_array_equal(everything(data.sample(9, 0))["x"], np.arange(5))


def test_taking_twice_takes_from_what_was_taken():
    data = from_arrays({"x": np.arange(9) * 10, "y": np.arange(9)}, "numbers")
    part = data.take(np.array([8, 2, 4])).take(np.array([2, 0]))
    np.testing.assert_array_equal(everything(part)["x"], [40, 80])
    np.testing.assert_array_equal(part.labels, [4, 8])


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_cover_everything_in_order(size):
    data = from_arrays({"x": np.arange(7)}, "numbers")
    indices, arrays = zip(*data.batches(size))
    assert max(map(len, indices)) <= size
    np.testing.assert_array_equal(np.concatenate(indices), np.arange(7))
    np.testing.assert_array_equal(np.concatenate([a["x"] for a in arrays]), np.arange(7))


def test_random_data_is_seeded_and_of_the_right_kind():
    shapes, dtypes = {"x": (1, 3, 4), "n": (1, 2)}, {"x": np.dtype("f4"), "n": np.dtype("i8")}
    data = random_data(shapes, dtypes, 200, seed=0)
    found = everything(data)
    assert found["x"].shape == (200, 3, 4) and found["x"].dtype == np.float32
    assert abs(found["x"].mean()) < 0.1 and abs(found["x"].std() - 1) < 0.1
    np.testing.assert_array_equal(found["n"], np.ones((200, 2)))
    np.testing.assert_array_equal(data.read(np.array([7]))["x"][0], found["x"][7])
    other = everything(random_data(shapes, dtypes, 200, seed=1))["x"]
    assert not np.allclose(found["x"], other)


def test_conforming_casts_and_leaves_free_sizes_free():
    data = from_arrays({"x": noise(4, 3, 9).astype(np.float64)}, "numbers")
    found = everything(conform(data, {"x": (1, 3, None)}, {"x": np.dtype(np.float32)}))
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], noise(4, 3, 9))


@pytest.mark.parametrize("shape", [(4, 3, 8), (4, 2, 9), (4, 3, 9, 1), (4, 27)])
def test_data_of_another_shape_is_refused(shape):
    data = from_arrays({"x": noise(*shape)}, "numbers")
    with pytest.raises(ConverterError, match=r"for input 'x'; the network takes 3,9"):
        conform(data, {"x": (None, 3, 9)}, {"x": np.dtype(np.float32)})


# augmentation


def pictures(tmp_path, count=6):
    """Preprocessing whose columns tell where they were: brighter to the right."""
    x = np.broadcast_to((np.arange(16) * 10).astype(np.uint8), (count, 16, 16))[..., None]
    np.savez(tmp_path / "pictures.npz", x=np.repeat(x, 3, axis=3))
    return str(tmp_path / "pictures.npz")


@pytest.mark.parametrize("augment", ["flip", "shift"])
def test_images_are_shifted_and_flipped(augment, tmp_path):
    data = read(pictures(tmp_path, 200), images=Preprocessing(flip=augment == "flip"))
    plain = data.read(np.arange(200))["x"]
    moved = data.batch(np.arange(200), np.random.default_rng(0))[0]["x"]
    assert moved.shape == plain.shape and moved.dtype == plain.dtype
    slopes = moved[:, 0, 0, 12] - moved[:, 0, 0, 4]
    assert (np.any(slopes < 0)) == (augment == "flip")
    assert len(np.unique(moved[:, 0, 0, 8])) > 3
    assert np.isin(moved, plain).all()


def test_augmentation_is_seeded(tmp_path):
    data = read(pictures(tmp_path)).take(np.array([4, 1]))
    one, again, other = (
        data.batch(np.arange(2), np.random.default_rng(seed))[0]["x"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_numbers_are_not_augmented():
    data = from_arrays({"x": noise(3, 3, 8, 8)}, "numbers")
    same = data.batch(np.arange(3), np.random.default_rng(0))[0]["x"]
    np.testing.assert_array_equal(same, data.read(np.arange(3))["x"])


def test_parts_of_image_files_are_of_the_size_that_is_wanted(tmp_path):
    for n in range(3):
        array = np.random.default_rng(n).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(array).save(tmp_path / f"{n}.png")
    data = read(tmp_path, images=Preprocessing(resize=32, crop=24))
    rng = np.random.default_rng(0)
    parts = [data.batch(np.arange(3), rng)[0]["x"] for _ in range(2)]
    assert parts[0].shape == data.read(np.arange(3))["x"].shape == (3, 3, 24, 24)
    assert not np.array_equal(*parts)


@pytest.mark.parametrize("flip", [True, False])
def test_image_files_that_are_not_cut_are_shifted(by_class, flip):
    folder, _ = by_class
    shown = np.arange(1, 16 * 16 + 1).reshape(16, 16)
    for path in folder.rglob("*.png"):
        Image.fromarray(np.repeat(shown[..., None], 3, 2).astype(np.uint8)).save(path)
    data = read(folder, images=Preprocessing(flip=flip))
    plain = data.read(np.arange(1))["x"][0]
    seen = [data.batch(np.arange(1), np.random.default_rng(n))[0]["x"][0] for n in range(30)]
    assert all(x.shape == plain.shape for x in seen)
    middles = {float(x[0, 8, 8]) for x in seen}
    assert len(middles) > 8  # five rows and columns to be shifted to
    flipped = [x[0, 8, 9] < x[0, 8, 8] for x in seen]
    assert any(flipped) == flip


# a DataLoader


class Squares(torch.utils.data.Dataset):
    """Numbered examples."""

    def __init__(self, count=6):
        self.count = count

    def __len__(self):  # noqa: D105
        return self.count

    def __getitem__(self, number):  # noqa: D105
        return torch.full((3, 2), float(number)), number % 4


LOADERS = {
    "pairs": lambda: torch.utils.data.DataLoader(Squares(), batch_size=4),
    "inputs": lambda: torch.utils.data.DataLoader([torch.full((3, 2), 5.0)] * 6),
    "dictionaries": lambda: torch.utils.data.DataLoader([{"x": np.full((3, 2), 5.0)}] * 6),
}


def load_from(loader):
    return readers.read("made:up", inputs_named(["x"]), Preprocessing(), lambda spec, what: loader)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_loader_gives_its_examples_by_number(kind):
    data = load_from(LOADERS[kind])
    assert data.count == 6
    np.testing.assert_array_equal(data.read(np.array([5, 5]))["x"], np.full((2, 3, 2), 5.0))
    wanted = [0, 1, 2, 3, 0, 1] if kind == "pairs" else None
    assert wanted == (None if data.labels is None else data.labels.tolist())


class Known(Squares):
    """Examples whose classes are known, and who was read."""

    def __init__(self, targets):
        super().__init__(len(targets))
        self.targets, self.read = targets, set()

    def __getitem__(self, number):  # noqa: D105
        self.read.add(number)
        return super().__getitem__(number)


@pytest.mark.parametrize(("shift", "reads"), [(0, 8), (1, 50)])
def test_targets_of_a_dataset_are_believed_where_they_say_the_same(shift, reads):
    dataset = Known([(number + shift) % 4 for number in range(50)])
    data = load_from(lambda: torch.utils.data.DataLoader(dataset))
    assert data.labels.tolist() == [number % 4 for number in range(50)]
    assert len(dataset.read) == reads


def mixed(examples):
    """Mix the inputs of a batch, and say which they are."""
    order = torch.randperm(len(examples))
    x = torch.stack([x for x, _ in examples])
    return x + 10 * x[order], torch.tensor([y for _, y in examples])[order]


def test_what_a_collate_function_changes_at_random_is_seeded_with_its_labels():
    data = load_from(lambda: torch.utils.data.DataLoader(Squares(), collate_fn=mixed))
    indices, state = np.arange(4), torch.random.get_rng_state()
    one, same, other = (data.batch(indices, np.random.default_rng(n)) for n in (3, 3, 5))
    assert torch.equal(state, torch.random.get_rng_state())
    for (feeds, labels), equal in ((same, True), (other, False)):
        assert np.array_equal(one[0]["x"], feeds["x"]) == equal
        assert np.array_equal(one[1], labels) == equal
        np.testing.assert_array_equal(feeds["x"][:, 0, 0], indices + 10 * labels)


def test_masks_of_a_loader_are_changed_with_their_images():
    class Masks(Squares):
        def __getitem__(self, number):
            shown = torch.rand(2, 2) + number
            return shown, (shown > number + 0.5).long()

    data = load_from(lambda: torch.utils.data.DataLoader(Masks()))
    assert data.labels is None
    data = conform(data, {"x": (None, 2, 2)}, {"x": np.dtype(np.float32)})
    seen = [data.batch(np.array([4, 1]), np.random.default_rng(n)) for n in range(2)]
    for feeds, labels in seen:
        np.testing.assert_array_equal(labels, feeds["x"] > np.array([4.5, 1.5])[:, None, None])
    assert not np.array_equal(seen[0][0]["x"], seen[1][0]["x"])
    still, never = (
        data.without_augmentation().batch(np.array([4, 1]), np.random.default_rng(n))
        for n in (0, 1)
    )
    np.testing.assert_array_equal(still[0]["x"], never[0]["x"])


class Jittered(Squares):
    """Examples that a dataset changes at random."""

    def __getitem__(self, number):  # noqa: D105
        return torch.rand(2) + np.random.rand() + random.random() + number, number


def test_what_a_dataset_changes_at_random_is_seeded():
    data = load_from(lambda: torch.utils.data.DataLoader(Jittered()))
    indices = np.array([4, 1])
    plain, again = (data.read(indices)["x"] for _ in range(2))
    np.testing.assert_array_equal(plain, again)
    one, same, other = (
        data.batch(indices, np.random.default_rng(seed))[0]["x"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other) and not np.allclose(one, plain)


class Stream(torch.utils.data.IterableDataset):
    """Examples without numbers."""

    def __iter__(self):  # noqa: D105
        yield torch.zeros(3)


class Broken(Squares):
    """Examples that cannot be read."""

    def __getitem__(self, number):  # noqa: D105
        raise KeyError(number)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Stream(), "not a stream"),
        (Squares(0), "yields nothing"),
        (Broken(), "failed: KeyError"),
        ([{"z": np.zeros(3)}], "must give the inputs x"),
        ([(np.zeros(3), "cat")], "must be numbers for each of 1 examples"),
    ],
)
def test_a_loader_that_cannot_be_read_is_refused(dataset, words):
    loader = torch.utils.data.DataLoader(Squares())
    loader = type("Loader", (), {"dataset": dataset, "collate_fn": staticmethod(loader.collate_fn)})
    with pytest.raises(ConverterError, match=words):
        load_from(lambda: loader)


# Python objects

X, Y = noise(6, 3, 2), np.arange(6) % 3
SAME = {
    "array": (X, None),
    "tensor": (torch.from_numpy(X).requires_grad_(), None),
    "mapping": ({"x": X, "y": Y}, Y),
    "x for the first input": ({"x": torch.from_numpy(X)}, None),
    "tuple of inputs": ((X,), None),
    "inputs and labels": ((X, torch.from_numpy(Y)), Y),
    "list of arrays": ([X[:4], X[4:]], None),
    "list of tuples": ([(X[:1], Y[:1]), (X[1:], Y[1:])], Y),
    "list of mappings": ([{"image": X[:5], "y": Y[:5]}, {"image": X[5:], "y": Y[5:]}], Y),
    "iterator": (iter([X[:4], X[4:]]), None),
    "loader": (torch.utils.data.DataLoader(list(zip(X, Y)), batch_size=4), Y),
}


@pytest.mark.parametrize("kind", SAME)
def test_python_objects_hold_the_same_data(kind):
    values, labels = SAME[kind]
    data = readers.read(values, inputs_named(["image"]), PLAIN, find_callable)
    assert data.count == 6 and list(everything(data)) == ["image"]
    np.testing.assert_array_equal(everything(data)["image"], X)
    assert (None if data.labels is None else data.labels.tolist()) == (
        None if labels is None else labels.tolist()
    )


def test_a_tuple_gives_several_inputs_in_order():
    data = readers.read((X, Y[:, None], Y), inputs_named(["x", "mask"]), PLAIN, find_callable)
    np.testing.assert_array_equal(everything(data)["mask"], Y[:, None])
    np.testing.assert_array_equal(data.labels, Y)


def test_images_in_memory_are_prepared_like_those_of_a_file(tmp_path):
    x, images = pixels(4, 5, 6, 3), Preprocessing(mean=(0.5,), bgr=True)
    file, memory = (
        readers.read(source, inputs_named(["x"]), images, find_callable)
        for source in (npz(tmp_path, x=x), {"x": x})
    )
    np.testing.assert_array_equal(everything(file)["x"], everything(memory)["x"])
    rng = np.random.default_rng
    shifted = [data.batch(np.arange(4), rng(0))[0]["x"] for data in (file, memory)]
    np.testing.assert_array_equal(*shifted)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((X, Y, Y), "is a tuple of 3 arrays; the network has the inputs x, and only labels"),
        ((), "is a tuple of 0 arrays"),
        ([], "Data <list> yields nothing"),
        (iter([]), "yields nothing"),
        ([X, Y], "has batches that differ"),
        ([X, {"z": X}], "has batches that differ"),
        ([[1.0, 2.0]], "must be a list of batches .*, not of list"),
        ([1.0, 2.0], "must be a list of batches .*, not of float"),
        ({"z": X}, "Data <dict> has arrays z; it lacks the network's input 'x'"),
        ({"y": Y}, "has arrays none"),
        (np.full((2, 3), "a"), "holds <U1, not numbers"),
        (np.float32(3), "above 0"),
        (np.zeros((0, 3)), "above 0"),
        (None, "holds object, not numbers"),
        ({"x": [[1.0], [1.0, 2.0]]}, "cannot be read as arrays"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), "cannot be read as arrays"),
        ((X, Y[:4]), "labels y of <tuple> must be numbers for each of 6 examples"),
        (torch.utils.data.DataLoader(Squares(0)), "Data <DataLoader> yields nothing"),
        (torch.utils.data.DataLoader(Squares(3), 4, drop_last=True), "yields nothing"),
        (torch.utils.data.DataLoader(Stream()), "not a stream"),
    ],
)
def test_python_objects_that_are_no_data_are_refused(values, words):
    with pytest.raises(ConverterError, match=words):
        readers.read(values, inputs_named(["x"]), PLAIN, find_callable)


@pytest.mark.parametrize(("count", "size", "wanted"), [(7, None, 7), (7, 3, 6), (2, 3, 3)])
def test_whole_batches_are_filled_and_cut(count, size, wanted):
    data = from_arrays({"x": np.arange(count)}, "numbers").whole_batches(size)
    np.testing.assert_array_equal(everything(data)["x"], np.arange(wanted) % count)


def test_what_is_held_out_is_changed_the_same_way_each_time(tmp_path):
    plain = read(npz(tmp_path, x=pixels(6, 8, 8, 3)))
    varied = plain.augmented(3)
    first, again = (varied.read(np.arange(4))["x"] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, plain.read(np.arange(4))["x"])
    assert not np.array_equal(first, plain.augmented(4).read(np.arange(4))["x"])


def test_what_cannot_be_changed_is_held_out_as_it_is():
    data = from_arrays({"x": np.ones((4, 3), np.float32)}, "ones")
    np.testing.assert_array_equal(data.augmented(0).read(np.arange(4))["x"], np.ones((4, 3)))
