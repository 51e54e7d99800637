"""Manifests, their publication and what hangs on them; see docs/internals/publication.md."""
