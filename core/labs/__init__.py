"""What the ideas look like: one small experiment in each file."""
