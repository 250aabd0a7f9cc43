"""One property per file: what can be proved?"""
