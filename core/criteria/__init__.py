"""One importance criterion per file: what is least important?"""
