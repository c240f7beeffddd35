"""WHAT A RUN LEAVES: its folder, written whole, owned by one. No torch."""
