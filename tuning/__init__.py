"""The sweep: Ray Tune over configurations, trained one after another in a Ray Train worker group."""
