#!/bin/sh
# A Python interpreter inside this site's namespaces; Ansible takes it as ansible_python_interpreter.
here=$(dirname -- "$(readlink -f -- "$0")")
# The link's own target: Python knows a virtual environment by the path that it was called by.
exec "$here/enter" "$(readlink -- "$here/interpreter")" "$@"
