"""One attribution method per file: where does it look?"""
