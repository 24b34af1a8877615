"""Show results; compute nothing."""
