"""What of a draft is durable; see docs/internals/journal.md."""
