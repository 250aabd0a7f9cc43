"""One diagnostic per file: what changed inside?"""
