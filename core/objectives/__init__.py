"""One objective per file: what is a network trained for?"""
