"""The site's word on a run: who said what, signed by the site's key, recorded before it is sent.

Knows the policy, the register and the database; never the network. The daemon sends what waits here.
"""
