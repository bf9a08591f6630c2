"""One round as this site sees it, as a pure machine. Knows no network, no file, no clock and no key."""
