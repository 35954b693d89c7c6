"""How long a network and its layers take."""
