"""One source of data per file."""
