"""The engine: compression, attribution, evaluation. It knows nothing of any front end."""
