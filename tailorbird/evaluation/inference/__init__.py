"""Run models on evaluation rows."""
