"""The site's numbers for its own people; off by default. Nothing that is computed from patient data is among them."""
