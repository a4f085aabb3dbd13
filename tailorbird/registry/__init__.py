"""Model versions, the champion of each task, and the test-set ledger."""
