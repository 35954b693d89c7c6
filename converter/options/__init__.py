"""The options of a conversion by subject, shared by the command line and Python."""

from converter.options.options import (
    SUBJECTS,
    Options,
    check_inputs,
    panel,
    shapes_by_name,
)
from converter.options.parsing import (
    InputShape,
    LayerForm,
    each_value,
    option_text,
    parse_input_shape,
)
from converter.options.subjects import (
    BudgetOptions,
    DataOptions,
    DataSource,
    ImageOptions,
    LayerOptions,
    ModelOptions,
    ResourceOptions,
    SearchOptions,
    TimingOptions,
    TrainOptions,
)
from converter.options.words import to_python_names, with_python_names

__all__ = [
    "SUBJECTS",
    "BudgetOptions",
    "DataOptions",
    "DataSource",
    "ImageOptions",
    "InputShape",
    "LayerForm",
    "LayerOptions",
    "ModelOptions",
    "Options",
    "ResourceOptions",
    "SearchOptions",
    "TimingOptions",
    "TrainOptions",
    "check_inputs",
    "each_value",
    "option_text",
    "panel",
    "parse_input_shape",
    "shapes_by_name",
    "to_python_names",
    "with_python_names",
]
