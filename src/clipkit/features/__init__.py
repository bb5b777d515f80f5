"""The content-keyed store of what frozen towers compute."""

from clipkit.features.store import FeatureStore, tensors_fingerprint

__all__ = ["FeatureStore", "tensors_fingerprint"]
