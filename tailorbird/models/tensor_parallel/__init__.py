"""Language models whose weights are divided among the ranks of a process group (tensor
parallelism)."""
