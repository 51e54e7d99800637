"""Commands that only speak the REST API, from anywhere."""
