"""The HTTP side: one process per worker, no framework imported."""
