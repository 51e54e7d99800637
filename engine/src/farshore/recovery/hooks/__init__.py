"""Runs hooks on a recovery node: Ansible tasks as a user of their own, killed with all that they have begun."""
