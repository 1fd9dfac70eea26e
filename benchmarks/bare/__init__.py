"""The bare limits: what the same work on the same tables costs without an engine around it."""
