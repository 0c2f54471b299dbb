"""What the model store holds: versions, artifacts and their configuration."""
