"""HTML pages for trying a model, and the API documentation as a page."""
