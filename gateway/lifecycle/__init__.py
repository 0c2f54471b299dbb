"""What becomes of a version: states, placement, and the manager that acts on them."""
