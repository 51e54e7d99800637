"""Who may do what: tokens of people and programs, certificates of nodes, grants of sessions."""
