"""Images at a site: from a manifest's rows to pixels, and to features that never leave. Knows no task and no round."""
