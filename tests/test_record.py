"""The record of a conversion: read as it was written, and followed by a comparison."""

import numpy as np
from conv_cases import FEW
from hypothesis import given
from hypothesis import strategies as st
from networks import noise

import converter
from converter.options import LayerForm, Options
from converter.report.folder import Record, read_record
from converter.report.layers import LayerRow
from converter.search.budgets import budgets_of, default_budget

shares = st.floats(1e-6, 0.999)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
times = st.none() | st.floats(0, 1e6, allow_subnormal=False)
rows = st.builds(
    LayerRow,
    name=names,
    form=st.none() | st.sampled_from(["flattened", "spatial", "dense"]),
    rank=st.none() | st.integers(1, 999) | st.lists(st.integers(1, 999), min_size=2, max_size=2),
    macs_before=st.integers(0, 10**12),
    macs_after=st.integers(0, 10**12),
    rel_error=times,
    latency_before_ms=times,
    latency_after_ms=times,
    reason=st.none() | names,
)
chosen = st.builds(
    LayerForm,
    st.sampled_from(["tucker", "channel"]),
    st.none() | st.integers(1, 99) | shares | st.tuples(shares, st.integers(1, 99)),
)
limits = {
    "max_drop": shares,
    "drop_type": st.sampled_from(["absolute", "relative"]),
    "max_error": st.floats(1e-6, 10),
    "target_speedup": st.floats(1.001, 100),
    "max_macs": shares,
    "max_bytes": shares | st.floats(1, 1e9),
}
by_hand = {"layers": st.dictionaries(names, st.none() | chosen, max_size=3)}
others = {
    "calib": st.sampled_from([None, "a:b", "/data/x.npz"]),
    "input_shape": st.lists(st.tuples(st.none() | names, st.just((1, 3, 8))), max_size=2),
    "mean": st.lists(st.floats(0, 1, allow_subnormal=False), max_size=3),
    "factory_args": st.dictionaries(names, st.integers() | names, max_size=2),
    "epochs": st.integers(0, 9),
    "int8": st.booleans(),
    "latency": st.sampled_from([None, "/data/latency.json"]),
    "threads": st.integers(1, 4),
    "memory": st.floats(0.1, 64),
    "seed": st.integers(0, 2**32),
}
choices = st.fixed_dictionaries({}, optional=others | limits) | st.fixed_dictionaries(
    {}, optional=others | by_hand
)


@FEW
@given(
    options=choices.map(lambda values: Options.of(**values)),
    origin=st.dictionaries(names, names | st.dictionaries(names, st.integers())),
    layers=st.lists(rows, max_size=3),
    classes=st.booleans(),
)
def test_a_record_is_read_as_it_was_written(tmp_path_factory, options, origin, layers, classes):
    budgets = budgets_of(options.budget) or (default_budget(classes, options.budget),)
    record = Record(origin, options, budgets, tuple(layers))
    folder = tmp_path_factory.mktemp("record")
    (folder / "conversion.json").write_text(record.to_json())
    again = read_record(folder)
    assert again == record
    assert again.to_json() == record.to_json()


def test_a_folder_is_compared_on_the_sample_inputs_of_its_conversion(toy_folder, tmp_path):
    np.savez(tmp_path / "calib.npz", x=noise(40, 3, 8, 8))
    options = {"form": "channel", "rank": 2, "calib": tmp_path / "calib.npz"}
    converter.convert(toy_folder / "net.onnx", **options).save(tmp_path / "out")
    assert converter.compare(tmp_path / "out").data == f"{tmp_path}/calib.npz"
    (tmp_path / "calib.npz").unlink()
    assert converter.compare(tmp_path / "out").data == "random numbers"
