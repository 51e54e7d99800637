"""The records of the control plane (SQLAlchemy on SQLite) and their migrations."""

from farshore.control.store.database import Store, Transaction

__all__ = ["Store", "Transaction"]
