"""Network images: framing, augmentation, blank places, batches."""
