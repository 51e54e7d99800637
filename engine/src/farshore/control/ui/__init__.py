"""The web page: pages rendered here from the same documents that the REST API gives to the same token.

:func:`mount` is all that the rest of the control plane needs.
"""

from farshore.control.ui.pages import mount

__all__ = ["mount"]
