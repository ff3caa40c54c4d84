"""The stages of the road, one file each, and the `anomaly` command that calls them."""
