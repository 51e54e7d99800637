"""Steps of a recovery that act on a site: small, repeatable functions over the platform contract."""
