"""WHAT A RUN IS: a config and all that follows from it alone. Standard library only."""
