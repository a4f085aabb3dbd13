"""The pooling of an encoder: how a model's folder declares it, and its computation."""
