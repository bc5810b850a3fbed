"""One experiment a file; each registers itself with the place of its section on the page."""
