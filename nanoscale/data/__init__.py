"""TOKENS: text to token files, token files to numbered samples."""
