"""One file a noun. A command reads its arguments, asks the client, and shows the answer; it decides nothing."""
