"""One convolution: its mathematics; no networks, no files."""
