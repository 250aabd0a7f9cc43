"""One compressor per file: make it smaller."""
