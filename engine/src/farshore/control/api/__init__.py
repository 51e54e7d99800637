"""The REST interface of people and programs (``/api/v1``) and the one of nodes (``/node/v1``)."""
