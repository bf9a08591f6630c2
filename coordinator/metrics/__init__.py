"""The coordinator's numbers for those who run it: what was committed is counted, the rest is read at the scrape.

Knows the services' rooms and the list of ``fl_protocol.telemetry``; nothing in the coordinator depends on it but the
composition root.
"""
