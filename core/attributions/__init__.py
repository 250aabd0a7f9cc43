"""One attribution method per file.

Captum is imported inside the methods: it takes seconds, and a list of methods must not wait for it.
"""
