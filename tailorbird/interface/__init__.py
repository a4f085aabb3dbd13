"""The Python interface, for notebooks and scripts: `tailorbird.run`, `compare` and `load`."""
