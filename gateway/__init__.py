"""A gateway that serves PyTorch and TensorFlow models behind one REST API."""

__version__ = "0.1.0"
