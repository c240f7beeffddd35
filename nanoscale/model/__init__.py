"""ONE STEP OF ONE MODEL, on one rank or many."""
