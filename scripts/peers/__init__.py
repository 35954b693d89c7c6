"""Other compression tools, applied to the same networks as flatconv."""
