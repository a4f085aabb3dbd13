"""Response formats, and the part of JSON Schema that they can have."""
