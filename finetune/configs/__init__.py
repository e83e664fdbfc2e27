"""The settings of a run, of `config.yaml`."""
