"""The one who steps the machines: holds a lease on a run, reads its events, performs its effects, watches the time."""
