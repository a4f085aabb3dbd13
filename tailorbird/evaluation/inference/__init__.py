"""Inference on evaluation rows."""
