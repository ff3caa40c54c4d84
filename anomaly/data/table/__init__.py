"""The table of scans: what a folder holds, who is who, and which split each scan is in."""
