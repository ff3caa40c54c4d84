"""The stages of the pipeline, one file each, and the `anomaly` command that runs them."""
