"""Edits of training documents: which, how far, and how they are written to disk and undone."""
