"""The HTML report: its cases, its pictures, and the file that contains them."""
