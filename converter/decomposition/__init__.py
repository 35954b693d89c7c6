"""One convolution: forms, metrics and solvers; no networks, no files."""
