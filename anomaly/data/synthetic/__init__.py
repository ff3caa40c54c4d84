"""Images that a computer makes: phantoms, and changes of real scans."""
