"""The commands of ``wardround-site``: what a hospital's IT and its privacy officer type. Decides nothing itself."""
