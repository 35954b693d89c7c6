"""Conversions of ONNX files, and what their networks compute."""

import converter
from converter import Options
from converter.graph.network import open_session
from converter.runtime.ort import run


def outputs(file, feeds):
    return run(open_session(file), feeds)


def converted(folder, model, **options):
    result = converter.convert(model, options=Options.of(**options))
    result.save(folder)
    return result
