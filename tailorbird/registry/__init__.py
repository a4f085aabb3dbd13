"""Model versions, the champion of each task, and the ledger of test set accesses."""
