"""THE VERBS: options in, lines and exit code out."""
