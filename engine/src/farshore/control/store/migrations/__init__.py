"""Alembic environment; run by ``Store.migrate``."""
