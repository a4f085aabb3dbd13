"""Tests that share one service of a classifier. They are a package, so that pytest starts the
service once."""
