"""int8: quantizer, channel equalization, rounding in training."""
