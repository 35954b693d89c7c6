"""Making the converted network good, and proving it."""
