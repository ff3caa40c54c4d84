"""Files of every known kind -> scans, decoded apart from what reads them."""
