"""The subcommands: argv → functions, nothing else. PyTorch is imported only by those that need it, and only when they run."""
