"""Solved chains on disk: found again by all they depend on, and never in the way."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conv_cases import SPLITTING_FORMS, make_conv

from converter.cache import cached_chain, cached_text, digest, evict, load_arrays, store_arrays
from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.decomposition.metric import Metric
from converter.processes import Resources
from converter.reconstruction.solve import solve_layer

CONV = make_conv((6, 5, 3, 3), dtype=np.float32, padding=((1, 1), (1, 1)))


def metric(seed=0, full=True, conv=CONV):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((500, conv.kernel[0].size)).cumsum(1)
    made = Metric.of(x.T @ x / 500, conv.kernel.shape[1])
    return made if full else replace(made, full=None)


def weights(chain):
    return [step.kernel.tobytes() for step in chain.steps]


def entries(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def fail():
    raise AssertionError("solved again")


@pytest.mark.parametrize("name", SPLITTING_FORMS)
@pytest.mark.parametrize("metrics", [None, [metric()]])
def test_what_comes_from_the_cache_is_what_was_solved(name, metrics, tmp_path):
    rank = {"tucker": (3, 3), "lvh": (1,), "decoupled": (2,)}.get(name, (4,))
    solved, kept, again = (
        solve_layer(CONV, FORMS[name], rank, metrics, Resources(cache=folder))
        for folder in (None, tmp_path, tmp_path)
    )
    assert weights(solved) == weights(kept) == weights(again)
    for one, two in zip(solved.steps, again.steps, strict=True):
        for field in ("groups", "stride", "padding", "dilation", "transposed"):
            assert getattr(one, field) == getattr(two, field)
    assert np.array_equal(again.steps[-1].bias, CONV.bias)
    assert len(entries(tmp_path)) == 1


def test_the_second_solve_is_no_solve(tmp_path):
    solve_layer(CONV, FORMS["flattened"], (4,), resources=Resources(cache=tmp_path))
    (path,) = entries(tmp_path)
    with np.load(path) as entry:
        arrays = dict(entry)
    arrays["0"] = 2 * arrays["0"]
    np.savez(path, **arrays)
    found = solve_layer(CONV, FORMS["flattened"], (4,), resources=Resources(cache=tmp_path))
    assert np.array_equal(found.steps[0].kernel, arrays["0"])


def test_geometry_and_bias_come_from_the_layer(tmp_path):
    one = replace(CONV, stride=(2, 1), padding=((0, 1), (2, 0)), bias=None)
    for conv in (CONV, one):
        found = solve_layer(conv, FORMS["spatial"], (4,), resources=Resources(cache=tmp_path))
        dense = found.dense()
        assert (dense.stride, dense.padding) == (conv.stride, conv.padding)
        assert (dense.bias is None) == (conv.bias is None)
    assert len(entries(tmp_path)) == 1


OTHERS = {
    "another seed": {"seed": 1},
    "another solver": {"solver": "tensorly"},
    "another rank": {"rank": (5,)},
    "another form": {"form": FORMS["spatial"]},
    "another kernel": {"conv": replace(CONV, kernel=np.nextafter(CONV.kernel, np.float32(9)))},
    "another type": {"conv": replace(CONV, kernel=CONV.kernel.astype(np.float64))},
    "a metric": {"metrics": [metric()]},
    "another metric": {"metrics": [metric(1)]},
    "a metric of factors": {"metrics": [metric(full=False)]},
}


def test_whatever_a_solve_depends_on_makes_another_entry(tmp_path):
    usual = {"conv": CONV, "form": FORMS["channel"], "rank": (4,)}
    for number, other in enumerate([{}, *OTHERS.values()]):
        settings = {name: other[name] for name in ("seed", "solver") if name in other}
        layer = {name: value for name, value in other.items() if name not in settings}
        resources = Resources(cache=tmp_path, **settings)
        solve_layer(**(usual | layer), resources=resources)
        assert len(entries(tmp_path)) == number + 1


def test_groups_make_another_entry(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((8, 4, 3, 3)).astype(np.float32)
    conv = replace(CONV, kernel=kernel, bias=None)
    for groups in (1, 2, 4):
        solve_layer(
            replace(conv, groups=groups),
            FORMS["channel"],
            (4,),
            resources=Resources(cache=tmp_path),
        )
    assert len(entries(tmp_path)) == 3


def test_content_tells_apart_what_lies_side_by_side():
    a, b = np.arange(4.0), np.arange(6.0)
    parts = [
        (a, b),
        (b, a),
        ([a], b),
        ([a, b],),
        (np.concatenate([a, b]),),
        (a.reshape(2, 2), b),
        (a.astype(np.float32), b),
        (a, b, None),
        (a, b, 1),
        (a, b, "1"),
        (a, b, 1.0),
        (a, [], b),
    ]
    assert len({digest(*part) for part in parts}) == len(parts)
    assert digest(a, [b, "x"], 3) == digest(a.copy(), (b[::-1][::-1], "x"), 3)


def damage(path, how):
    whole = path.read_bytes()
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "one bit":
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("solved")
    elif how == "another archive":
        np.savez(path, x=np.arange(5))
    elif how == "pickled":
        np.savez(path, groups=np.array([{}, 1], object))
    elif how == "a folder":
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "how", ["truncated", "one bit", "empty", "text", "another archive", "pickled", "a folder"]
)
def test_an_entry_that_is_damaged_is_solved_again(how, tmp_path):
    wanted = solve_layer(CONV, FORMS["spatial"], (4,), resources=Resources(cache=tmp_path))
    (path,) = entries(tmp_path)
    damage(path, how)
    found = solve_layer(CONV, FORMS["spatial"], (4,), resources=Resources(cache=tmp_path))
    assert weights(found) == weights(wanted)
    if how != "a folder":
        again = cached_chain(tmp_path, path.stem, CONV, fail)
        assert weights(again) == weights(wanted)
    assert not list(tmp_path.rglob("*.partial"))


def test_an_entry_of_another_layer_is_solved_again(tmp_path):
    solve_layer(
        make_conv((3, 2, 3, 3)), FORMS["spatial"], (4,), resources=Resources(cache=tmp_path)
    )
    (other,) = entries(tmp_path)
    wanted = solve_layer(CONV, FORMS["spatial"], (4,), resources=Resources(cache=tmp_path))
    (path,) = set(entries(tmp_path)) - {other}
    path.write_bytes(other.read_bytes())
    found = solve_layer(CONV, FORMS["spatial"], (4,), resources=Resources(cache=tmp_path))
    assert weights(found) == weights(wanted)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_does_not_matter(name, tmp_path):
    (tmp_path / "file").write_text("no folder")
    found = solve_layer(CONV, FORMS["spatial"], (4,), resources=Resources(cache=tmp_path / name))
    assert weights(found) == weights(decompose(CONV, FORMS["spatial"], (4,)))
    assert entries(tmp_path) == [tmp_path / "file"]


def test_what_goes_wrong_in_a_solve_is_not_kept(tmp_path):
    with pytest.raises(AssertionError, match="solved again"):
        cached_chain(tmp_path, "key", CONV, fail)
    assert entries(tmp_path) == []


TOGETHER = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, "tests")
from test_cache import CONV, FORMS, Resources, solve_layer
sys.stdin.readline()
resources = Resources(cache=Path(sys.argv[1]))
for rank in range(1, 21):
    chain = solve_layer(CONV, FORMS["channel"], (rank % 6 + 1,), resources=resources)
    print([step.kernel.tobytes().hex() for step in chain.steps])
"""


def test_two_processes_share_a_cache(tmp_path):
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(entries(tmp_path)) == 6
    assert all(path.suffix == ".npz" for path in entries(tmp_path))


def test_a_text_of_which_a_byte_has_changed_is_made_anew(tmp_path):
    made = []

    def make():
        made.append(1)
        return '{"error": 0.125}'

    for _ in range(2):
        assert cached_text(tmp_path, "ab" * 20, make) == '{"error": 0.125}'
    assert len(made) == 1
    (path,) = tmp_path.rglob("*.txt")
    path.write_text(path.read_text().replace("0.125", "0.625"))
    assert cached_text(tmp_path, "ab" * 20, make) == '{"error": 0.125}'
    assert len(made) == 2


def stored(folder, keys):
    """Keys of 1 kB entries, the first one used last."""
    for age, key in enumerate(keys):
        store_arrays(folder, key, {"x": np.zeros(125)})
        (path,) = folder.rglob(f"{key}.npz")
        os.utime(path, (1000 - age, 1000 - age))
    return path.stat().st_size


def test_entries_that_were_used_last_stay_within_the_size_limit(tmp_path):
    size = stored(tmp_path, ["aa", "bb", "cc", "dd"])
    assert load_arrays(tmp_path, "dd") is not None  # it was the oldest
    evict(tmp_path, 2 * size)
    assert [key for key in ("aa", "bb", "cc", "dd") if load_arrays(tmp_path, key)] == ["aa", "dd"]


def test_only_entries_are_deleted(tmp_path):
    stored(tmp_path, ["aa"])
    others = [tmp_path / "photo.npz", tmp_path / "training" / "v4" / "ab" / "state.safetensors"]
    older = tmp_path / "v1" / "ab" / "abc.npz"
    for path in (*others, older):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    evict(tmp_path)
    assert load_arrays(tmp_path, "aa") is not None and not older.exists()
    evict(tmp_path, 0)
    assert entries(tmp_path) == sorted(others)


def test_a_cache_that_is_not_there_is_left_alone(tmp_path):
    evict(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
