"""HTTP services for registered versions on Ray Serve."""
