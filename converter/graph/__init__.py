"""An ONNX network: load, canonicalize, survey, rewrite, save."""
