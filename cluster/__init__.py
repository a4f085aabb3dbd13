"""The Ray cluster: connection, remote tasks, jobs, progress, code packages and the embedded
stack."""
