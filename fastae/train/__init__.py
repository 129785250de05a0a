"""Training of autoencoders."""
