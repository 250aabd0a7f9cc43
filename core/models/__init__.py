"""One family of architectures per file."""
