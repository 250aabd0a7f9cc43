"""How fast Prunescope answers, against what people run instead; `python -m bench`.

Peers work in processes of their own with the settings that torch has when nobody touches them, and
wait there for their turn: contestants are interleaved in one run, and ratios are ratios of medians.
"""
