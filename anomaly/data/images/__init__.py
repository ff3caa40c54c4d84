"""Images as a network sees them: framing, augmentation, blank places, batches."""
