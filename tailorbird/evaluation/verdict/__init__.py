"""The verdict: a pure function of stored predictions and measurements."""
