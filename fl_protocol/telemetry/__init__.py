"""What is told of a running system to those who run it: names that both sides share. Nothing here is evidence.

``metric``, ``coordinator_metrics``, ``site_metrics`` and ``log_fields`` are pure lists; ``findings`` is the form of a
``doctor``'s report. ``meter``, ``logs`` and ``tracing`` are the thin shells over the libraries that tell it; only the
sides' shells import them. Nothing that is computed from patient data is in any of them: no loss, no count of records,
no norm.
"""
