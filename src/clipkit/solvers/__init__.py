"""Closed-form and full-batch fits on stored features: tensors in, tensors out."""
