"""Plans: chosen by hand or by error, written down, read back, replayed, refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from converter.decomposition.approximation import estimate_errors, relative_error
from converter.decomposition.conv import Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.form import full_rank, refusal
from converter.decomposition.forms import FORMS
from converter.decomposition.ranks import all_ranks
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.options import LayerForm, Options
from converter.search.candidates import cheapest
from converter.search.manual import MAX_MACS, MAX_WEIGHT_ERROR, make_plan
from converter.search.plan import Choice, Plan

SHAPES = {"x": (1, 3, 8, 8)}


def layer(name, *shape, low_rank=None, reason=None, groups=1, seed=0):
    """A 3x3 (or other) layer on 8x8 inputs; of matrix rank ``low_rank`` and a little noise."""
    rng = np.random.default_rng((seed, *map(ord, name)))
    kernel = rng.standard_normal(shape)
    if low_rank is not None:
        flat = rng.standard_normal((shape[0], low_rank)) @ rng.standard_normal(
            (low_rank, kernel[0].size)
        )
        kernel = flat.reshape(shape) + 0.01 * kernel
    pad = tuple((k // 2, k // 2) for k in shape[2:])
    conv = Conv(kernel.astype(np.float32), None, (1, 1), pad, (1, 1), groups=groups)
    return Layer(
        name=name,
        output=f"{name}.out",
        source=f"{name}.in",
        weight=f"{name}.weight",
        conv=None if reason else conv,
        size=(8, 8),
        params=conv.params,
        macs=conv.macs((8, 8)),
        reason=reason,
    )


@pytest.fixture(scope="module")
def layers():
    return (
        layer("stem", 16, 3, 3, 3),
        layer("block1.conv1", 16, 16, 3, 3),
        layer("block1.conv2", 16, 16, 3, 3),
        layer("block2.conv1", 32, 16, 3, 3),
        layer("head", 16, 32, 1, 1),
        layer("up", 16, 16, 3, 3, reason="its weight is shared by 2 layers"),
    )


def plan_of(layers, /, **options):
    options = Options.of(**options)
    return make_plan(layers, options.layers, SHAPES, options.resources.seed)


def chosen(plan):
    return {c.layer: (c.form, c.rank) for c in plan.choices if c.form}


def reasons(plan):
    return {c.layer: c.reason for c in plan.choices if c.reason}


# by hand


def test_a_form_alone_is_for_all_layers_at_its_default_rank(layers):
    plan = plan_of(layers, form=("flattened",))
    assert chosen(plan) == {
        "stem": ("flattened", (16,)),
        "block1.conv1": ("flattened", (16,)),
        "block1.conv2": ("flattened", (16,)),
        "block2.conv1": ("flattened", (32,)),
    }
    assert "1x1 kernel" in reasons(plan)["head"]
    assert reasons(plan)["up"] == "its weight is shared by 2 layers"


def test_a_rank_alone_is_for_the_default_form(layers):
    assert chosen(plan_of(layers, rank=("8",)))["block2.conv1"] == ("flattened", (8,))


@pytest.mark.parametrize(
    ("form", "rank", "wanted"),
    [
        ("separable", "8", (8,)),
        ("separable", "0.5", (16,)),
        ("separable", "1.0", (32,)),
        ("channel", "0.001", (1,)),
        ("lvh", "1", (1,)),
        ("decoupled", "3", (3,)),
        ("decoupled", "0.5", (4,)),
        ("spatial", "0.25", (8,)),
        ("tucker", "0.5,0.25", (8, 8)),
        ("tucker", "0.5", (8, 16)),
        ("tucker", "4,12", (4, 12)),
    ],
)
def test_ranks_are_numbers_or_fractions(layers, form, rank, wanted):
    plan = plan_of(layers, form=(form,), rank=(rank,))
    assert chosen(plan)["block2.conv1"] == (form, wanted)
    assert "block2.conv1" not in reasons(plan)


def test_two_stages_are_of_lvh_alone(layers):
    plan = plan_of(layers, form=("separable", "stem=lvh"), stages=2)
    assert chosen(plan)["stem"] == ("lvh2", (16,))
    assert chosen(plan)["block1.conv1"] == ("separable", (16,))
    with pytest.raises(ConverterError, match="--stages is an option of --form lvh"):
        Options.of(form=("separable",), stages=2)


def test_one_layer_is_chosen_by_its_name(layers):
    plan = plan_of(layers, form=("block1.conv2=spatial",), rank=("block1.conv2=4",))
    assert chosen(plan) == {"block1.conv2": ("spatial", (4,))}
    assert reasons(plan)["stem"] == "no form was chosen for it"


def test_a_name_goes_before_the_value_for_all(layers):
    forms, ranks = ("channel", "block1.*=tucker"), ("8", "block1.conv2=2,4", "stem=0.25")
    assert chosen(plan_of(layers, form=forms, rank=ranks)) == {
        "stem": ("channel", (4,)),
        "block1.conv1": ("tucker", (8, 8)),
        "block1.conv2": ("tucker", (2, 4)),
        "block2.conv1": ("channel", (8,)),
        "head": ("channel", (8,)),
    }


def test_a_pattern_names_several_layers(layers):
    plan = plan_of(layers, rank=("block*.conv1=4",))
    assert chosen(plan) == {
        "block1.conv1": ("flattened", (4,)),
        "block2.conv1": ("flattened", (4,)),
    }


def test_a_name_with_brackets_is_taken_literally():
    odd = layer("net[0].conv", 16, 16, 3, 3)
    assert chosen(plan_of([odd], form=("net[0].conv=channel",))) == {
        "net[0].conv": ("channel", (8,))
    }


def test_a_uniform_rank_too_large_is_clamped_with_a_note(layers):
    plan = plan_of(layers, form=("channel",), rank=("20",))
    assert chosen(plan)["stem"] == ("channel", (16,))
    assert reasons(plan)["stem"] == "rank 20 does not fit, 16 taken"
    assert chosen(plan)["block2.conv1"] == ("channel", (20,))
    assert "block2.conv1" not in reasons(plan)


def test_a_uniform_rank_becomes_a_multiple_of_the_groups():
    grouped = layer("grouped", 16, 4, 3, 3, groups=4)
    plan = plan_of([grouped], form=("channel",), rank=("9",))
    assert chosen(plan) == {"grouped": ("channel", (8,))}
    assert reasons(plan)["grouped"] == "rank 9 does not fit, 8 taken"


def test_a_named_rank_too_large_is_refused(layers):
    with pytest.raises(ConverterError, match="Layer stem: rank 20 does not fit, 16 taken"):
        plan_of(layers, form=("channel",), rank=("stem=20",))


@pytest.mark.parametrize("name", ["form", "rank"])
def test_a_named_layer_that_cannot_be_converted_is_refused(layers, name):
    value = {"form": "up=channel", "rank": "up=8"}[name]
    with pytest.raises(ConverterError, match="Layer up cannot be converted: its weight"):
        plan_of(layers, **{name: (value,)})


def test_a_named_form_that_cannot_stand_in_is_refused(layers):
    with pytest.raises(ConverterError, match="Layer head: spatial: its kernel does not extend"):
        plan_of(layers, form=("head=spatial",))


@pytest.mark.parametrize("rank", ["0", "-4", "0.0", "nan", "inf"])
def test_ranks_must_be_above_0(layers, rank):
    with pytest.raises(ConverterError, match="must be above 0"):
        plan_of(layers, rank=(rank,))


@pytest.mark.parametrize("rank", ["many", "8,", "1e", "8x8"])
def test_ranks_must_be_numbers(layers, rank):
    with pytest.raises(ConverterError, match=r"is not a number|has 2 parts"):
        plan_of(layers, rank=(rank,))


def test_a_pair_is_for_tucker_only(layers):
    with pytest.raises(ConverterError, match="has 2 parts; channel takes 1"):
        plan_of(layers, form=("channel",), rank=("8,8",))


def test_an_unknown_form_is_refused(layers):
    with pytest.raises(ConverterError, match=r"no form 'flat'; use one of flattened, separable"):
        plan_of(layers, form=("flat",))


def test_only_these_layers(layers):
    plan = plan_of(layers, form=("channel",), only=("block1.*", "head"))
    assert set(chosen(plan)) == {"block1.conv1", "block1.conv2", "head"}
    assert reasons(plan)["stem"] == "the user keeps it"


def test_keep_these_layers(layers):
    plan = plan_of(layers, form=("channel",), keep=("block1.*", "head"))
    assert set(chosen(plan)) == {"stem", "block2.conv1"}


def test_keep_goes_before_only(layers):
    plan = plan_of(layers, form=("channel",), only=("block1.*",), keep=("block1.conv2",))
    assert set(chosen(plan)) == {"block1.conv1"}


@pytest.mark.parametrize("option", ["only", "keep", "form", "rank"])
def test_an_unknown_layer_is_refused_with_close_names(layers, option):
    value = {"form": "blok1.conv1=channel", "rank": "blok1.conv1=4"}.get(option, "blok1.conv1")
    with pytest.raises(
        ConverterError, match=rf"--{option}: .* no layer 'blok1\.conv1'; .*block1\.conv1"
    ):
        plan_of(layers, **{option: (value,)})


# typed choices


def test_typed_choices_are_those_of_the_command_line(layers):
    typed = plan_of(
        layers,
        layers={
            "block1.*": LayerForm("tucker", (4, 8)),
            "stem": LayerForm("spatial"),
            "head": LayerForm("channel", 0.5),
            "block2.conv1": None,
        },
    )
    text = plan_of(
        layers,
        form=("block1.*=tucker", "stem=spatial", "head=channel"),
        rank=("block1.*=4,8", "head=0.5"),
        keep=("block2.conv1",),
    )
    assert chosen(typed) == chosen(text)
    assert reasons(typed)["block2.conv1"] == "the user keeps it"


def test_typed_choices_of_unknown_layers_are_refused(layers):
    with pytest.raises(ConverterError, match="layers: the network has no layer 'steam'"):
        plan_of(layers, layers={"steam": LayerForm("spatial")})
    with pytest.raises(ConverterError, match="There is no form 'flat'"):
        plan_of(layers, layers={"stem": LayerForm("flat")})


# by error


@pytest.fixture(scope="module")
def mixed():
    """Layers with much to save, and with nothing."""
    return (
        layer("noise", 32, 32, 3, 3),
        layer("low", 32, 32, 3, 3, low_rank=4),
        layer("lower", 64, 32, 3, 3, low_rank=2),
        layer("pointwise", 64, 64, 1, 1, low_rank=8),
        layer("depthwise", 32, 1, 3, 3, groups=32),
        layer("up", 16, 16, 3, 3, reason="its weight is shared by 2 layers"),
    )


def test_the_default_saves_macs_within_the_error(mixed):
    plan = plan_of(mixed)
    assert set(chosen(plan)) == {"low", "lower", "pointwise"}
    for part in mixed:
        if part.name in chosen(plan):
            form, rank = plan.chosen()[part.name]
            chain = decompose(part.conv, form, rank)
            assert relative_error(part.conv, chain) <= MAX_WEIGHT_ERROR
            assert chain.macs(part.size) <= MAX_MACS * part.macs
    assert "no form saves 25% of its MACs" in reasons(plan)["noise"]
    assert reasons(plan)["up"] == "its weight is shared by 2 layers"


def test_the_default_takes_the_cheapest(mixed):
    for part, choice in zip(mixed, plan_of(mixed).choices):
        if choice.form:
            assert cheapest(part, MAX_WEIGHT_ERROR)[:2] == (choice.form, choice.rank)


def test_the_default_keeps_what_the_user_keeps(mixed):
    assert set(chosen(plan_of(mixed, keep=("low*",)))) == {"pointwise"}


@pytest.mark.parametrize("max_error", [0.02, 0.25, 0.6])
def test_no_chain_within_the_weight_error_is_cheaper(mixed, max_error):
    for part in mixed[:4]:
        within = {}
        for form in FORMS.values():
            error_at = None if refusal(form, part.conv) else estimate_errors(part.conv, form)
            for rank in all_ranks(form, part.conv, 16) if error_at else ():
                if rank != full_rank(form, part.conv) and error_at(rank) <= max_error:
                    chain = decompose(part.conv, form, rank)
                    assert relative_error(part.conv, chain) <= max_error + 1e-5
                    within[form.name, rank] = chain.macs(part.size)
        chosen_chain = cheapest(part, max_error)
        assert (chosen_chain is None) is (not within)
        if chosen_chain is not None:
            assert chosen_chain[2] == within[chosen_chain[:2]] == min(within.values())


# written and read


def test_a_plan_survives_json(layers):
    forms, ranks = ("channel", "block1.*=tucker"), ("20", "block1.conv2=2,4")
    plan = plan_of(layers, form=forms, rank=ranks, seed=7)
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert (again.seed, again.input_shapes) == (7, SHAPES)


def test_a_plan_says_what_a_person_wants_to_know(layers):
    document = json.loads(plan_of(layers, form=("tucker",), rank=("4,8",)).to_json())
    assert (document["format"], document["version"]) == ("flatconv-plan", 1)
    assert document["input_shapes"] == {"x": [1, 3, 8, 8]}
    assert list(document["layers"]) == [part.name for part in layers]
    entry = document["layers"]["block1.conv1"]
    assert (entry["form"], entry["rank"]) == ("tucker", [4, 8])
    assert len(entry["kernel_sha256"]) == 64
    assert document["layers"]["up"] == {"reason": "its weight is shared by 2 layers"}


def test_a_plan_does_not_change(layers):
    plan = plan_of(layers, form=("channel",))
    with pytest.raises(AttributeError):
        plan.seed = 3
    with pytest.raises(AttributeError):
        plan.choices[0].form = None


def test_a_withdrawn_plan_keeps_every_layer(layers):
    plan = plan_of(layers, form=("channel",), keep=("stem",)).reverted(
        "it is no faster", [layer.name for layer in layers]
    )
    assert plan.chosen() == {}
    assert reasons(plan)["head"] == "it is no faster"
    assert reasons(plan)["stem"] == "the user keeps it"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "{}", '{"format": "flatconv-plan", "version": 1}'],
)
def test_what_is_no_plan_is_refused(text):
    with pytest.raises(ConverterError, match="not a flatconv plan"):
        Plan.from_json(text)


# replayed


@pytest.fixture
def write(tmp_path):
    """Write a plan, or what a hand made of it, to a file."""

    def write_plan(plan, **changes):
        document = json.loads(plan.to_json())
        for name, entry in changes.pop("layers", {}).items():
            document["layers"][name] = entry
        (tmp_path / "plan.json").write_text(json.dumps(document | changes))
        return tmp_path / "plan.json"

    return write_plan


def by_hand(*entries):
    """A plan with nothing that a person would not write."""
    return Plan(tuple(Choice(name, form, rank) for name, form, rank in entries), {})


def test_a_replayed_plan_chooses_the_same(layers, write):
    plan = plan_of(layers, form=("channel",), rank=("20",), keep=("stem",), seed=3)
    assert plan_of(layers, plan=write(plan)) == plan


def test_a_plan_written_by_hand_is_enough(layers, write):
    path = write(by_hand(), layers={"block1.conv1": {"form": "channel", "rank": 4}})
    plan = plan_of(layers, plan=path)
    assert chosen(plan) == {"block1.conv1": ("channel", (4,))}
    assert reasons(plan)["stem"] == "the plan does not name it"
    assert [c.layer for c in plan.choices] == [part.name for part in layers]


def test_a_plan_may_keep_a_layer_without_a_reason(layers, write):
    plan = plan_of(layers, plan=write(by_hand(), layers={"stem": {}}))
    assert reasons(plan)["stem"] == "the plan keeps it"


def test_a_plan_for_other_weights_is_refused(layers, write):
    path = write(plan_of(layers, form=("channel",)))
    conv = layers[1].conv
    changed = replace(layers[1], conv=replace(conv, kernel=conv.kernel * np.float32(1.0001)))
    with pytest.raises(ConverterError, match=r"other weights: layer block1\.conv1 differs"):
        plan_of((layers[0], changed, *layers[2:]), plan=path)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"form": "channel", "rank": 17}, "Rank 17 does not fit; channel takes 1 to 16"),
        ({"form": "channel", "rank": 0}, "Rank 0 does not fit"),
        ({"form": "channel", "rank": -1}, "Rank -1 does not fit"),
        ({"form": "channel", "rank": [4, 4]}, "Rank 4,4 does not fit"),
        ({"form": "tucker", "rank": 4}, "Rank 4 does not fit"),
        ({"form": "channel", "rank": 4.5}, "must be a whole number"),
        ({"form": "channel", "rank": [4.0]}, "must be a whole number"),
        ({"form": "channel", "rank": "4"}, "must be a whole number"),
        ({"form": "channel", "rank": True}, "must be a whole number"),
        ({"form": "channel", "rank": []}, "must be a whole number"),
        ({"form": "channel"}, "must be a whole number"),
        ({"form": "flat", "rank": 4}, "no form 'flat'"),
        ("channel", "not a flatconv plan"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(layers, write, entry, match):
    path = write(by_hand(), layers={"block1.conv1": entry})
    with pytest.raises(ConverterError, match=match) as raised:
        plan_of(layers, plan=path)
    assert str(path) in str(raised.value)


def test_a_plan_for_a_layer_that_cannot_be_converted_is_refused(layers, write):
    with pytest.raises(ConverterError, match="layer up: its weight is shared"):
        plan_of(layers, plan=write(by_hand(("up", "channel", (4,)))))


def test_a_plan_for_an_unknown_layer_is_refused_with_close_names(layers, write):
    path = write(by_hand(("block1.conv3", "channel", (4,))))
    with pytest.raises(ConverterError, match=r"no layer 'block1\.conv3'; .*block1\.conv"):
        plan_of(layers, plan=path)


@pytest.mark.parametrize("changes", [{"version": 2}, {"version": None}, {"format": "other"}])
def test_a_plan_of_another_version_is_refused(layers, write, changes):
    with pytest.raises(ConverterError, match="not a flatconv plan of version 1"):
        plan_of(layers, plan=write(plan_of(layers, form=("channel",)), **changes))


def test_a_damaged_plan_is_refused(layers, write):
    path = write(plan_of(layers, form=("channel",)))
    for text in (path.read_text()[:200], "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConverterError, match=r"plan\.json cannot be used"):
            plan_of(layers, plan=path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00plan"])
def test_an_unreadable_plan_is_refused(layers, tmp_path, content):
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(ConverterError, match="cannot be read"):
        plan_of(layers, plan=tmp_path / "plan.json")
