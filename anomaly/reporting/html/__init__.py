"""The report page: its cases, its pictures, and how they become a file."""
