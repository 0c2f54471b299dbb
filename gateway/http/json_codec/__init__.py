"""Arrays in JSON text to tensors, and the process in which large bodies are decoded."""
