"""Look at unknown data: samples, roles of columns, lengths."""
