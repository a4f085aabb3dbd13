"""Engines that send requests to an endpoint: an OpenAI-compatible server outside of this
service."""
