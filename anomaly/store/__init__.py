"""Storage on disk: bundles, results, readings, tables for spreadsheets, hashes."""
