"""One command per file: its options, what it does, what it says."""
