"""The framework side: warm runners and the model instances they fork."""
