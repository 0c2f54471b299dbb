"""What other servers' model repositories say, in the words of model.yaml; pure but for the files that hold them."""
