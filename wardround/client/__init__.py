"""The coordinator's REST interface as a client sees it: connection, problems, pages, writes that may be repeated."""
