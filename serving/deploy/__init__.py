"""Deploy versions through Ray Serve's REST API."""
