"""What whoever runs the coordinator types: one module a subject, and what their answers share."""
