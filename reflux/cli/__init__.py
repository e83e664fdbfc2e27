"""The `reflux` command: one file a command."""
