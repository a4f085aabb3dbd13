"""The console: pages about all tasks of a registry, which read the registry alone and write
nothing."""
