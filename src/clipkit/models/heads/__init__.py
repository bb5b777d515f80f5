"""Classifiers: from embeddings or features to class logits, one file each."""
