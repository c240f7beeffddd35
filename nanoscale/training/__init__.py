"""ONE RUN: folder in, folder filled."""
