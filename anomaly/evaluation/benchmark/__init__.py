"""A benchmark: scans that are looked at once, and every figure that is computed from them."""
