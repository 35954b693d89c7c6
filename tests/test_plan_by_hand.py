"""Plans by hand: forms and ranks for all layers or for named ones, as text or typed."""

import pytest
from plan_cases import chosen, layer, plan_of, reasons

from converter.errors import ConverterError
from converter.options import LayerForm, Options


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
