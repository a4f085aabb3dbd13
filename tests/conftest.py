"""Settings of every test: property tests never fail by the clock, for machines differ."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
