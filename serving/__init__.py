"""How a registered version answers over HTTP on Ray Serve."""
