"""What a converted network loses, and whether it is sound."""
