"""What the commands in `cli.py` stand on: words to values, and values to words."""
