"""Templates, components and charts that all HTML pages share."""
