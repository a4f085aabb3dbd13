"""Tests of one service of a classifier: a package, so that pytest starts the service once for all of them."""
